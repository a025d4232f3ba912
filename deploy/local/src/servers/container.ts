import { randomUUID } from 'node:crypto';
import { setTimeout as delay } from 'node:timers/promises';
import { findFreePort } from '../free-port.ts';
import { progress } from '../progress.ts';
import { CommandFailed, runCommand } from '../run-command.ts';
import { type StopRecord, stopRecorded } from '../supervision/stop-recorded.ts';
import { forget, watch } from '../supervision/watched.ts';
import { NotAvailable, type ServerHandle, type ServerKind } from './server.ts';

export interface ContainerPlan {
  readonly kind: ServerKind;
  readonly image: string;
  readonly containerPort: number;
  readonly detached: boolean;
  readonly env: Readonly<Record<string, string>>;
  readonly command: readonly string[];
  readonly url: (port: number) => string;
  /** Connects once and returns the server's version; throws while it does not answer. */
  readonly readVersion: (url: string) => Promise<string>;
}

const readyTimeoutMs = 60_000;

/** Runs a server as a container, published on a free port of 127.0.0.1. */
export async function startContainer(plan: ContainerPlan): Promise<ServerHandle> {
  await needDockerWith(plan.image);
  const name = `keytrail-${plan.kind}-${randomUUID()}`;
  const record: StopRecord = { name: plan.kind, container: name, folders: [] };
  if (!plan.detached) watch(name, record);
  const stop = async () => {
    await stopRecorded(record);
    forget(name);
  };
  let port: number;
  let version: string;
  try {
    port = await runOnFreePort(plan, name);
    version = await untilAnswering(plan, name, port);
  } catch (error) {
    await stop();
    throw error;
  }
  return {
    kind: plan.kind,
    origin: 'docker',
    version,
    port,
    url: plan.url(port),
    record,
    stop,
    [Symbol.asyncDispose]: stop,
    async halt() {
      await runCommand('docker', ['stop', name]);
    },
    async restart() {
      await runCommand('docker', ['restart', name]);
      await untilAnswering(plan, name, port);
    },
    async kill(signal) {
      if (signal === 'SIGSTOP') await runCommand('docker', ['pause', name]);
      else if (signal === 'SIGCONT') await runCommand('docker', ['unpause', name]);
      else await runCommand('docker', ['kill', '--signal', signal, name]);
    },
  };
}

async function needDockerWith(image: string): Promise<void> {
  try {
    await runCommand('docker', ['version', '--format', '{{.Server.Version}}'], { timeoutMs: 10_000 });
  } catch {
    throw new NotAvailable('no Docker daemon answers');
  }
  if (
    await runCommand('docker', ['image', 'inspect', '--format', '{{.Id}}', image]).then(
      () => true,
      () => false,
    )
  )
    return;
  progress(`fetching the Docker image ${image}`);
  try {
    await runCommand('docker', ['pull', '--quiet', image]);
  } catch (error) {
    throw new NotAvailable((error as Error).message);
  }
}

async function runOnFreePort(plan: ContainerPlan, name: string): Promise<number> {
  const env = Object.entries(plan.env).flatMap(([key, value]) => ['--env', `${key}=${value}`]);
  for (let attempt = 1; ; attempt++) {
    const port = await findFreePort();
    const publish = `127.0.0.1:${port}:${plan.containerPort}`;
    try {
      await runCommand('docker', [
        'run',
        '--detach',
        '--name',
        name,
        '--publish',
        publish,
        ...env,
        plan.image,
        ...plan.command,
      ]);
      return port;
    } catch (error) {
      const portTaken =
        error instanceof CommandFailed && /address already in use|port is already allocated/i.test(error.output);
      if (attempt === 10 || !portTaken) throw error;
      await runCommand('docker', ['rm', '--force', '--volumes', name]);
    }
  }
}

async function untilAnswering(plan: ContainerPlan, name: string, port: number): Promise<string> {
  const deadline = Date.now() + readyTimeoutMs;
  for (;;) {
    try {
      return await plan.readVersion(plan.url(port));
    } catch (error) {
      if (Date.now() > deadline) {
        const log = await runCommand('docker', ['logs', '--tail', '20', name]).catch(() => '');
        throw new Error(
          `${plan.kind} in Docker is not ready after ${readyTimeoutMs} ms: ${String(error)}. Its log ends:\n${log}`,
          { cause: error },
        );
      }
    }
    await delay(100);
  }
}
