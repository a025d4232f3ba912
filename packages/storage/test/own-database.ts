import { randomBytes, randomUUID } from 'node:crypto';
import { ensurePostgres, type PostgresOptions, type ServerHandle } from '@keytrail/local';
import { createServiceDatabase, type Database, openDatabase } from '../src/index.ts';

/** A PostgreSQL for one test file, which hands out databases of their own. */
export interface TestPostgres {
  readonly server: ServerHandle;
  /** The URL of a new, empty database with a role of its own. */
  createDatabase(): Promise<string>;
  /** The same, opened, with these statements run in it; closed at the end. */
  openDatabase(sql: string, options?: { connections?: number; statementTimeoutMs?: number }): Promise<Database>;
  stop(): Promise<void>;
}

/**
 * A server of the file's own, where nobody else's transaction, nor autovacuum's, holds back the horizon of the cluster: what is told again
 * then is right to be told, but no test can say how often.
 */
export const undisturbed: PostgresOptions = { own: true, settings: { autovacuum: 'off' } };

export async function startTestPostgres(options: PostgresOptions = {}): Promise<TestPostgres> {
  const server = await ensurePostgres(options);
  const opened: Database[] = [];
  async function createDatabase(): Promise<string> {
    const name = `test_${randomUUID().replaceAll('-', '')}`;
    return createServiceDatabase({ adminUrl: server.url, name, role: name, password: randomBytes(9).toString('hex') });
  }
  return {
    server,
    createDatabase,
    async openDatabase(sql, { connections = 10, statementTimeoutMs = 5000 } = {}) {
      const db = openDatabase({ url: await createDatabase(), service: 'test', connections, statementTimeoutMs });
      opened.push(db);
      await db.pool.query(sql);
      return db;
    },
    async stop() {
      await Promise.all(opened.map((db) => db.close()));
      await server.stop();
    },
  };
}
