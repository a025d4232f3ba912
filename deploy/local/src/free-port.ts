import { randomInt } from 'node:crypto';
import { createServer } from 'node:net';

/**
 * A TCP port on 127.0.0.1 that was free a moment ago. Whoever binds it must be ready to try another one.
 *
 * It lies below the range that systems hand out to outgoing connections (32768… on Linux, 49152… on macOS). A port of
 * that range could be taken while a server restarts on it, or a client that reconnects to the stopped server could
 * be connected to itself.
 */
export async function findFreePort(): Promise<number> {
  for (let attempt = 0; attempt < 100; attempt++) {
    const port = randomInt(12_000, 32_000);
    if (await isFree(port)) return port;
  }
  throw new Error('no free port on 127.0.0.1 between 12000 and 32000 in 100 attempts');
}

function isFree(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const server = createServer();
    server.once('error', () => resolve(false));
    server.listen(port, '127.0.0.1', () => server.close(() => resolve(true)));
  });
}
