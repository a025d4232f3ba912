import { readFileSync } from 'node:fs';

const ticksPerSecond = 100;

/** Processor seconds of a running process, all its threads; NaN where there is no /proc. */
export function processorSeconds(pid: number): number {
  const [user, system] = times(`/proc/${pid}/stat`);
  return (user + system) / ticksPerSecond;
}

/** Processor seconds of the programs that this process has started and seen end; NaN where there is no /proc. */
export function processorSecondsOfEndedPrograms(): number {
  const [, , user, system] = times('/proc/self/stat');
  return (user + system) / ticksPerSecond;
}

/** Processor seconds of a process and its children, the ended ones too: PostgreSQL has one for each connection. */
export function processorSecondsOfFamily(pid: number): number {
  let ticks = times(`/proc/${pid}/stat`).reduce((sum, each) => sum + each, 0);
  try {
    for (const child of readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8').trim().split(' '))
      ticks += times(`/proc/${child}/stat`).reduce((sum, each) => sum + each, 0);
  } catch {
    return Number.NaN;
  }
  return ticks / ticksPerSecond;
}

function times(file: string): [number, number, number, number] {
  try {
    const stat = readFileSync(file, 'utf8');
    // The name in parentheses may hold spaces.
    const fields = stat
      .slice(stat.lastIndexOf(')') + 2)
      .split(' ')
      .map(Number);
    return [fields[11], fields[12], fields[13], fields[14]] as [number, number, number, number];
  } catch {
    return [Number.NaN, Number.NaN, Number.NaN, Number.NaN];
  }
}
