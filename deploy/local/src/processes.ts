import { mkdirSync } from 'node:fs';
import { dirname } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { checkoutFolder } from './checkout.ts';
import { type JsonLine, JsonLineReader, sizeOf, tailOf } from './log-lines.ts';
import { baseEnvironment } from './servers/programs-on-path.ts';
import { type Exit, type Launched, launch } from './supervision/launch.ts';
import type { StopRecord } from './supervision/stop-recorded.ts';

export interface StartProcessOptions {
  /** For messages. */
  readonly name: string;
  /** Default: the Node that runs this. */
  readonly command?: string;
  readonly args: readonly string[];
  /**
   * The environment of the process. Only PATH, HOME, TMPDIR, TZ, LD_LIBRARY_PATH and the CA settings are inherited, so
   * that what a service sees does not depend on who starts it.
   */
  readonly env?: Readonly<Record<string, string>>;
  /** Default: the root of the checkout. */
  readonly cwd?: string;
  /** stdout and stderr are appended here; its folder is made. */
  readonly logFile: string;
  /** Ready when it printed such a line of JSON. Default: `event` is `listening`, unless `ready` is given. */
  readonly readyLine?: (line: JsonLine) => boolean;
  /** Ready when this resolves with true; asked again and again, a rejection counts as false. */
  readonly ready?: () => Promise<boolean>;
  /** Default 30,000. */
  readonly readyTimeoutMs?: number;
  /** From SIGTERM to SIGKILL when stopped, unless `stop` says otherwise. Default 15,000. */
  readonly graceMs?: number;
  /** Runs on when this process ends, until its `record` is stopped. Default false. */
  readonly detached?: boolean;
  /** Told what would stop it, before it is ready: for whoever must be able to stop it while it starts. */
  readonly launched?: (record: StopRecord) => void;
}

/** A process that was started and became ready. */
export interface ProcessHandle extends AsyncDisposable {
  readonly name: string;
  /** Of the present run. */
  readonly pid: number;
  readonly logFile: string;
  /** Ends with the present run; never rejects. */
  readonly exited: Promise<Exit>;
  /** What stops it from another process. */
  readonly record: StopRecord;
  /** The JSON lines that the present run has printed up to now. */
  lines(): readonly JsonLine[];
  /**
   * The first JSON line of the present run, past or to come, that satisfies the predicate. Throws with the last log
   * lines when the process ends before, or after `timeoutMs` (default 30,000).
   */
  waitForLine(predicate: (line: JsonLine) => boolean, options?: { readonly timeoutMs?: number }): Promise<JsonLine>;
  /** SIGTERM, then SIGKILL after `graceMs`. Idempotent. */
  stop(graceMs?: number): Promise<void>;
  /** Signals it and its descendants; resolves after its end when the signal is SIGKILL. */
  kill(signal: NodeJS.Signals): Promise<void>;
  /**
   * Starts it again, after stopping it if it runs, and waits until it is ready. `env` is laid over the present one for good; `cwd` is
   * from then on where it runs, such as the folder of another release.
   */
  restart(options?: { readonly env?: Readonly<Record<string, string>>; readonly cwd?: string }): Promise<void>;
}

interface Run {
  readonly launched: Launched;
  readonly reader: JsonLineReader;
}

const pollMs = 20;

/** Starts a process and waits until it is ready; throws with its last log lines when it ends before that. */
export async function startProcess(started: StartProcessOptions): Promise<ProcessHandle> {
  let options = started;
  mkdirSync(dirname(options.logFile), { recursive: true });
  let env = options.env ?? {};
  let run = await startRun(options, env);

  const stop = (graceMs?: number) => run.launched.stop(graceMs === undefined ? {} : { graceMs });
  return {
    name: options.name,
    logFile: options.logFile,
    get pid() {
      return run.launched.pid;
    },
    get exited() {
      return run.launched.exited;
    },
    get record() {
      return run.launched.record;
    },
    lines: () => run.reader.read(),
    waitForLine: (predicate, { timeoutMs = 30_000 } = {}) => waitForLine(options, run, predicate, timeoutMs),
    stop,
    [Symbol.asyncDispose]: () => stop(),
    kill: (signal) => run.launched.kill(signal),
    async restart({ env: changes = {}, cwd } = {}) {
      await run.launched.stop();
      env = { ...env, ...changes };
      if (cwd !== undefined) options = { ...options, cwd };
      run = await startRun(options, env);
    },
  };
}

async function startRun(options: StartProcessOptions, env: Readonly<Record<string, string>>): Promise<Run> {
  const reader = new JsonLineReader(options.logFile, sizeOf(options.logFile));
  const launched = await launch({
    name: options.name,
    command: options.command ?? process.execPath,
    args: options.args,
    env: { ...baseEnvironment(), ...env },
    cwd: options.cwd ?? checkoutFolder,
    logFile: options.logFile,
    stopSignal: 'SIGTERM',
    graceMs: options.graceMs ?? 15_000,
    folders: [],
    detached: options.detached === true,
    keepsAlive: options.detached !== true,
  });
  options.launched?.(launched.record);
  const run = { launched, reader };
  try {
    await untilReady(options, run);
    return run;
  } catch (error) {
    await launched.kill('SIGKILL');
    throw error;
  }
}

async function untilReady(options: StartProcessOptions, run: Run): Promise<void> {
  const timeoutMs = options.readyTimeoutMs ?? 30_000;
  const { ready, readyLine } = options;
  if (readyLine !== undefined || ready === undefined) {
    await waitForLine(options, run, readyLine ?? ((line) => line.event === 'listening'), timeoutMs);
  }
  if (ready !== undefined)
    await poll(options, run, timeoutMs, async () => ((await ready().catch(() => false)) ? true : undefined));
}

function waitForLine(
  options: StartProcessOptions,
  run: Run,
  predicate: (line: JsonLine) => boolean,
  timeoutMs: number,
): Promise<JsonLine> {
  return poll(options, run, timeoutMs, async () => run.reader.read().find(predicate));
}

async function poll<T>(
  options: StartProcessOptions,
  { launched }: Run,
  timeoutMs: number,
  look: () => Promise<T | undefined>,
): Promise<T> {
  const deadline = Date.now() + timeoutMs;
  for (;;) {
    // Asked before looking: what it printed just before its end must not be missed.
    const exit = launched.exit();
    const found = await look();
    if (found !== undefined) return found;
    if (exit !== undefined) throw failure(options, `ended with ${exit.signal ?? `code ${exit.code}`}`);
    if (Date.now() > deadline) throw failure(options, `is still not there after ${timeoutMs} ms`);
    await delay(pollMs);
  }
}

function failure({ name, logFile }: StartProcessOptions, what: string): Error {
  return new Error(`${name} ${what}. ${logFile} ends:\n${tailOf(logFile)}`);
}
