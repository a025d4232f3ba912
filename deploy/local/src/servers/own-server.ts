import { existsSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { setTimeout as delay } from 'node:timers/promises';
import { findFreePort } from '../free-port.ts';
import { tailOf } from '../log-lines.ts';
import { type Launched, launch } from '../supervision/launch.ts';
import type { Identity } from './instance-folder.ts';
import { baseEnvironment } from './programs-on-path.ts';
import type { Origin, ServerHandle, ServerKind } from './server.ts';

/** How to run one server program. */
export interface OwnServer {
  readonly kind: ServerKind;
  readonly origin: Origin;
  readonly version: string;
  /** Private to this server: its data, configuration and log. Removed by `stop`. */
  readonly folder: string;
  readonly program: string;
  readonly env: Readonly<Record<string, string>>;
  readonly identity?: Identity;
  readonly detached: boolean;
  /** What `restart({ empty: true })` removes from the folder; missing when this server cannot begin anew without it. */
  readonly stored?: string;
  /** Signal of an orderly stop that keeps the data. */
  readonly haltSignal: NodeJS.Signals;
  /** Signal of a stop after which the data is removed. */
  readonly stopSignal: NodeJS.Signals;
  readonly args: (port: number) => readonly string[] | Promise<readonly string[]>;
  readonly url: (port: number) => string;
  /** Resolves when this very server answers on the port, and throws while it does not. */
  readonly probe: (port: number, pid: number) => Promise<void>;
}

const readyTimeoutMs = 60_000;
const graceMs = 15_000;
/** What the three servers log when they cannot start yet or cannot have this port. */
const mayBeTriedAgain =
  /address already in use|could not create any TCP\/IP sockets|pre-existing shared memory block|lock file .* already exists/i;

/** Starts a server on a free port of 127.0.0.1. Removes its folder when it does not become ready. */
export async function startOwnServer(plan: OwnServer): Promise<ServerHandle> {
  const logFile = `${plan.folder}/server.log`;
  const run = async (port: number): Promise<Launched> => {
    const next = await launch({
      name: plan.kind,
      command: plan.program,
      args: await plan.args(port),
      env: { ...baseEnvironment(), ...plan.env },
      cwd: plan.folder,
      logFile,
      stopSignal: plan.stopSignal,
      graceMs,
      folders: [plan.folder],
      detached: plan.detached,
      keepsAlive: false,
      ...plan.identity,
    });
    try {
      await untilReady(plan, next, port, logFile);
      return next;
    } catch (error) {
      await next.kill('SIGKILL');
      throw error;
    }
  };

  let port = 0;
  let launched: Launched;
  try {
    launched = await retrying(10, async () => {
      port = await findFreePort();
      return run(port);
    });
  } catch (error) {
    await rm(plan.folder, { recursive: true, force: true });
    throw error;
  }

  const stop = async () => {
    await launched.stop();
    await rm(plan.folder, { recursive: true, force: true, maxRetries: 5 });
  };
  return {
    kind: plan.kind,
    origin: plan.origin,
    version: plan.version,
    port,
    url: plan.url(port),
    get pid() {
      return launched.pid;
    },
    get record() {
      return launched.record;
    },
    stop,
    [Symbol.asyncDispose]: stop,
    halt: () => launched.stop({ signal: plan.haltSignal }),
    async restart({ empty = false } = {}) {
      if (empty && plan.stored === undefined) throw new Error(`${plan.kind} cannot be restarted without its data`);
      await launched.stop({ signal: plan.haltSignal });
      if (!existsSync(plan.folder)) throw new Error(`this ${plan.kind} server was stopped and its data removed`);
      if (empty) await rm(`${plan.folder}/${plan.stored}`, { recursive: true, force: true });
      launched = await retrying(100, () => run(port));
    },
    kill: (signal) => launched.kill(signal),
  };
}

class StartFailed extends Error {
  override readonly name = 'StartFailed';
}

async function retrying(attempts: number, start: () => Promise<Launched>): Promise<Launched> {
  for (let attempt = 1; ; attempt++) {
    try {
      return await start();
    } catch (error) {
      if (attempt === attempts || !(error instanceof StartFailed && mayBeTriedAgain.test(error.message))) throw error;
      await delay(100);
    }
  }
}

async function untilReady(plan: OwnServer, launched: Launched, port: number, logFile: string): Promise<void> {
  const deadline = Date.now() + readyTimeoutMs;
  for (;;) {
    let reason: unknown;
    try {
      await plan.probe(port, launched.pid);
      return;
    } catch (error) {
      reason = error;
    }
    const exit = launched.exit();
    if (exit !== undefined) {
      const how = exit.signal ?? `code ${exit.code}`;
      throw new StartFailed(
        `${plan.kind} (${plan.program}) ended with ${how} before it was ready. Its log ends:\n${tailOf(logFile)}`,
      );
    }
    if (Date.now() > deadline) {
      throw new Error(
        `${plan.kind} (${plan.program}) is not ready after ${readyTimeoutMs} ms: ${String(reason)}. Its log ends:\n${tailOf(logFile)}`,
      );
    }
    await delay(20);
  }
}
