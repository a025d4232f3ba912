import { spawn } from 'node:child_process';
import { closeSync, openSync } from 'node:fs';
import { birthOf, signalTree } from './process-tree.ts';
import { type StopRecord, stopRecorded } from './stop-recorded.ts';
import { forget, watch } from './watched.ts';

export interface LaunchOptions {
  readonly name: string;
  readonly command: string;
  readonly args: readonly string[];
  readonly env: Readonly<Record<string, string>>;
  readonly cwd: string;
  /** stdout and stderr are appended here. */
  readonly logFile: string;
  readonly stopSignal: NodeJS.Signals;
  readonly graceMs: number;
  /** Folders to be removed when this process dies before it called `stop`. */
  readonly folders: readonly string[];
  readonly uid?: number;
  readonly gid?: number;
  /** true: runs on when this process ends. */
  readonly detached: boolean;
  /** true: this process stays alive as long as the launched one does. */
  readonly keepsAlive: boolean;
}

/** How a process ended; `code` is null when a signal ended it. */
export interface Exit {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
}

/** One run of one program. */
export interface Launched {
  readonly pid: number;
  readonly record: StopRecord;
  readonly exited: Promise<Exit>;
  /** Set once the process has ended. */
  exit(): Exit | undefined;
  /** `stopSignal`, then SIGKILL after the grace; resolves when it has ended. Leaves folders alone. */
  stop(options?: { signal?: NodeJS.Signals; graceMs?: number }): Promise<void>;
  /** Sends a signal to it and its descendants; resolves after the end when the signal is SIGKILL. */
  kill(signal: NodeJS.Signals): Promise<void>;
}

/** Starts a program under the watchdog; throws when it cannot be started at all. */
export async function launch(options: LaunchOptions): Promise<Launched> {
  const log = openSync(options.logFile, 'a');
  const child = spawn(options.command, options.args, {
    cwd: options.cwd,
    env: options.env,
    stdio: ['ignore', log, log],
    // Ctrl-C in a terminal is for this process, which then stops the others in good order.
    detached: true,
    ...(options.uid === undefined ? {} : { uid: options.uid }),
    ...(options.gid === undefined ? {} : { gid: options.gid }),
  });
  closeSync(log);
  const pid = child.pid;
  if (pid === undefined) {
    const reason = await new Promise<Error>((resolve) => child.once('error', resolve));
    throw new Error(`${options.name} cannot be started: ${reason.message}`);
  }
  if (!options.keepsAlive) child.unref();

  const { name, folders, stopSignal, graceMs } = options;
  const record: StopRecord = { name, process: { pid, born: birthOf(pid) ?? '', stopSignal, graceMs }, folders };
  const key = `process ${pid}`;
  if (!options.detached) watch(key, record);

  let exit: Exit | undefined;
  const exited = new Promise<Exit>((resolve) => {
    child.once('exit', (code, signal) => {
      exit = { code, signal };
      resolve(exit);
    });
  });
  const ended = async () => {
    child.ref();
    await exited;
  };
  return {
    pid,
    record,
    exited,
    exit: () => exit,
    async stop({ signal = stopSignal, graceMs: grace = graceMs } = {}) {
      await stopRecorded({
        name,
        process: { pid, born: record.process?.born ?? '', stopSignal: signal, graceMs: grace },
        folders: [],
      });
      await ended();
      forget(key);
    },
    async kill(signal) {
      if (exit !== undefined) return;
      signalTree(pid, signal);
      if (signal === 'SIGKILL') await ended();
    },
  };
}
