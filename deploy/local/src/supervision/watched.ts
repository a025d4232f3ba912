import { type ChildProcess, spawn } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import type { StopRecord } from './stop-recorded.ts';
import type { WatchdogMessage } from './watchdog.ts';

const records = new Map<string, StopRecord>();
let watchdog: ChildProcess | undefined;

/** From now on the record is stopped when this process ends, in whatever way. The same key replaces its record. */
export function watch(key: string, record: StopRecord): void {
  records.set(key, record);
  if (watchdog?.connected) send({ key, watch: record });
  else startWatchdog();
}

/** The record was stopped in an orderly way, or shall outlive this process. */
export function forget(key: string): void {
  if (records.delete(key) && watchdog?.connected) send({ forget: key });
}

function startWatchdog(): void {
  const { NODE_OPTIONS: _preloads, ...env } = process.env;
  watchdog = spawn(process.execPath, [fileURLToPath(new URL('./watchdog.ts', import.meta.url))], {
    // A session of its own: neither Ctrl-C nor a signal to the parent's process group may reach it.
    detached: true,
    cwd: '/',
    stdio: ['ignore', 'ignore', 'ignore', 'ipc'],
    env,
  });
  watchdog.unref();
  watchdog.channel?.unref();
  watchdog.on('error', () => {});
  for (const [key, record] of records) send({ key, watch: record });
}

function send(message: WatchdogMessage): void {
  // A watchdog that somebody killed is replaced at the next watch().
  watchdog?.send(message, () => {});
}
