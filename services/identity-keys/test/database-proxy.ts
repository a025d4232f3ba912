import type { AddressInfo } from 'node:net';
import { connect as connectTo, createServer, type Socket } from 'node:net';

/** Stands between a process and PostgreSQL, and can keep an answer back: the moment between a commit and what the caller hears of it. */
export interface DatabaseProxy {
  /** Leads to the database through the proxy. */
  readonly url: string;
  /**
   * From now on connections that run the prepared statement of this name hear nothing more from the database. Resolves when the first
   * answer was kept back: the statement is committed then.
   */
  keepBackAnswersTo(statement: string): Promise<void>;
  /** Lets everything through again; what was kept back stays lost. */
  letThrough(): void;
  stop(): Promise<void>;
}

export async function startDatabaseProxy(databaseUrl: string): Promise<DatabaseProxy> {
  const database = new URL(databaseUrl);
  const sockets = new Set<Socket>();
  let watched: { readonly bind: Buffer; readonly keptBack: () => void } | undefined;

  const server = createServer((client) => {
    const upstream = connectTo({ host: database.hostname, port: Number(database.port) });
    let muted: (() => void) | undefined;
    for (const socket of [client, upstream]) {
      sockets.add(socket);
      socket.setNoDelay(true);
      socket.on('error', () => {});
      socket.on('close', () => {
        sockets.delete(socket);
        client.destroy();
        upstream.destroy();
      });
    }
    client.on('data', (bytes: Buffer) => {
      if (watched && bytes.includes(watched.bind)) muted = watched.keptBack;
      upstream.write(bytes);
    });
    upstream.on('data', (bytes: Buffer) => {
      if (muted) muted();
      else client.write(bytes);
    });
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const url = new URL(databaseUrl);
  url.host = `127.0.0.1:${(server.address() as AddressInfo).port}`;

  return {
    url: url.href,
    keepBackAnswersTo(statement) {
      const { promise, resolve } = Promise.withResolvers<void>();
      // Bind names the prepared statement, ended by a zero byte. One answer of a claim of one device comes whole, after its commit.
      watched = { bind: Buffer.from(`${statement}\0`), keptBack: resolve };
      return promise;
    },
    letThrough() {
      watched = undefined;
    },
    async stop() {
      for (const socket of sockets) socket.destroy();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}
