import { execFileSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync } from 'node:fs';

interface ProcessRow {
  readonly pid: number;
  readonly parent: number;
  readonly state: string;
  /** Together with the pid this names one process for good: pids are used again. */
  readonly born: string;
}

const hasProc = existsSync('/proc/self/stat');

/** Whether the process runs; a zombie (ended, but not yet collected by its parent) does not. */
export function isAlive(pid: number): boolean {
  const row = readProcess(pid);
  return row !== undefined && row.state !== 'Z';
}

/** What tells this process from a later one with the same pid. */
export function birthOf(pid: number): string | undefined {
  return readProcess(pid)?.born;
}

/**
 * Sends a signal to a process and all its descendants. PostgreSQL's backends each lead a process group of their own, so
 * signalling the group would freeze the postmaster only.
 */
export function signalTree(pid: number, signal: NodeJS.Signals): void {
  for (const member of [pid, ...descendantsOf(pid)]) signalOne(member, signal);
}

/** Sends a signal to one process; one that is gone already is fine. */
export function signalOne(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(pid, signal);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error;
  }
}

/** The children of a process, their children, and so on. */
export function descendantsOf(pid: number): number[] {
  const rows = readProcesses();
  const found: number[] = [];
  for (let parents = [pid]; parents.length > 0; ) {
    parents = rows.filter((row) => parents.includes(row.parent)).map((row) => row.pid);
    found.push(...parents);
  }
  return found;
}

function readProcess(pid: number): ProcessRow | undefined {
  if (hasProc) return readStat(pid);
  return readPs(['-p', String(pid)])[0];
}

function readProcesses(): ProcessRow[] {
  if (!hasProc) return readPs(['-A']);
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .flatMap((name) => readStat(Number(name)) ?? []);
}

function readStat(pid: number): ProcessRow | undefined {
  let stat: string;
  try {
    stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
  } catch {
    return undefined;
  }
  // The command's name stands in brackets and may hold blanks and brackets itself.
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  return { pid, state: fields[0] ?? '', parent: Number(fields[1]), born: fields[19] ?? '' };
}

function readPs(which: string[]): ProcessRow[] {
  let table: string;
  try {
    table = execFileSync('ps', [...which, '-o', 'pid=,ppid=,state=,lstart='], {
      encoding: 'utf8',
      stdio: ['ignore', 'pipe', 'ignore'],
    });
  } catch {
    return [];
  }
  return table.split('\n').flatMap((line) => {
    const [pid, parent, state, ...born] = line.trim().split(/\s+/);
    return born.length === 0
      ? []
      : [{ pid: Number(pid), parent: Number(parent), state: state?.[0] ?? '', born: born.join(' ') }];
  });
}
