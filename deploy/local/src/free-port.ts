import { randomInt } from 'node:crypto';
import { mkdirSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { checkoutFolder } from './checkout.ts';

// By far longer than a process takes from being given its port to listening on it.
const promiseMs = 120_000;

const promised = new Set<string>();

/**
 * A TCP port on 127.0.0.1 that was free a moment ago, and that nobody else of this checkout is given within two minutes: suites that start
 * processes side by side each have ports before their processes listen. Others may take it meanwhile.
 *
 * It lies below the range that systems hand out to outgoing connections (32768… on Linux, 49152… on macOS). A port of
 * that range could be taken while a server restarts on it, or a client that reconnects to the stopped server could
 * be connected to itself.
 */
export async function findFreePort(): Promise<number> {
  for (let attempt = 0; attempt < 100; attempt++) {
    const port = randomInt(12_000, 32_000);
    if (promisePort(port) && (await isFree(port))) return port;
  }
  throw new Error('no free port on 127.0.0.1 between 12000 and 32000 in 100 attempts');
}

/** False when somebody was given the port a moment ago. `folder` has a file for each port that was. */
export function promisePort(port: number, folder = join(checkoutFolder, '.local', 'ports')): boolean {
  const file = join(folder, String(port));
  mkdirSync(folder, { recursive: true });
  const age = ageOf(file);
  if (age !== undefined && age < promiseMs) return false;
  rmSync(file, { force: true });
  try {
    writeFileSync(file, String(process.pid), { flag: 'wx' });
  } catch {
    return false;
  }
  if (promised.size === 0) process.once('exit', forgetPromises);
  promised.add(file);
  return true;
}

function forgetPromises(): void {
  for (const file of promised) rmSync(file, { force: true });
}

function ageOf(file: string): number | undefined {
  const found = statSync(file, { throwIfNoEntry: false });
  return found && Date.now() - found.mtimeMs;
}

function isFree(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const server = createServer();
    server.once('error', () => resolve(false));
    server.listen(port, '127.0.0.1', () => server.close(() => resolve(true)));
  });
}
