import { rm } from 'node:fs/promises';
import { setTimeout as delay } from 'node:timers/promises';
import { CommandFailed, runCommand } from '../run-command.ts';
import { birthOf, descendantsOf, isAlive, signalOne, signalTree } from './process-tree.ts';

/**
 * All that another process needs to know to stop something started here and to clear away what it left. Plain JSON, so
 * that it can be kept in a file between `make up` and `make down`.
 */
export interface StopRecord {
  readonly name: string;
  readonly process?: {
    readonly pid: number;
    /** From {@link birthOf}; a process with this pid but another birth is left alone. */
    readonly born: string;
    readonly stopSignal: NodeJS.Signals;
    /** How long to wait after `stopSignal` before SIGKILL. */
    readonly graceMs: number;
  };
  readonly container?: string;
  readonly folders: readonly string[];
}

/** Stops what the record names and removes its folders. Idempotent: all of it may be gone already. */
export async function stopRecorded(record: StopRecord): Promise<void> {
  if (record.process !== undefined) await stopProcess(record.process);
  if (record.container !== undefined) await removeContainer(record.container);
  for (const folder of record.folders) await rm(folder, { recursive: true, force: true, maxRetries: 5 });
}

/** Whether the process of the record still runs; a container is not looked at. */
export function isRecordedAlive(record: StopRecord): boolean {
  return (
    record.process !== undefined && birthOf(record.process.pid) === record.process.born && isAlive(record.process.pid)
  );
}

async function stopProcess(target: NonNullable<StopRecord['process']>): Promise<void> {
  const { pid, born, stopSignal, graceMs } = target;
  if (birthOf(pid) !== born) return;
  const family = [pid, ...descendantsOf(pid)].flatMap((member) => {
    const birth = birthOf(member);
    return birth === undefined ? [] : [{ pid: member, born: birth }];
  });
  const running = () => family.filter((member) => birthOf(member.pid) === member.born && isAlive(member.pid));
  signalOne(pid, stopSignal);
  // A process frozen by SIGSTOP takes notice of nothing else before it continues.
  signalTree(pid, 'SIGCONT');
  const deadline = Date.now() + graceMs;
  while (running().length > 0 && Date.now() < deadline) await delay(20);
  for (const member of running()) signalOne(member.pid, 'SIGKILL');
  while (running().length > 0) await delay(20);
}

async function removeContainer(container: string): Promise<void> {
  await runCommand('docker', ['rm', '--force', '--volumes', container]).catch((error: unknown) => {
    if (!(error instanceof CommandFailed && /no such container/i.test(error.output))) throw error;
  });
}
