import { setImmediate, setTimeout } from 'node:timers/promises';
import { attr, DatabaseAway, type SpanAttributes, SpanKind, SpanStatusCode, trace, tracer } from '@keytrail/telemetry';
import type { PrismaPg } from '@prisma/adapter-pg';
import pg from 'pg';
import {
  isConnectionFailure,
  isDatabaseError,
  isInFailedTransaction,
  isSerializationFailure,
  TransactionAborted,
  withoutValues,
} from './errors.ts';
import { openLanes } from './lanes.ts';
import { GuardedPrismaPg } from './prisma-adapter.ts';
import { createSchemaGate, openGate, type SchemaGate } from './schema-gate.ts';
import { type Statement, statement } from './statement.ts';
import { typeParsers } from './type-parsers.ts';

export interface DatabaseOptions {
  readonly url: string;
  /** Shown by PostgreSQL as `application_name`. */
  readonly service: string;
  readonly connections: number;
  readonly statementTimeoutMs: number;
  /**
   * Plans each prepared statement once for all values, not anew for each execution whenever PostgreSQL guesses that these values have a better
   * plan: for a service whose statements find rows by key, and for which planning costs more than such a guess is worth.
   */
  readonly planOnce?: boolean;
  /** Folder of the migrations of the build: see `schema`. */
  readonly migrations?: string;
}

/** Runs statements. Columns: int8 → bigint, bytea → Buffer, timestamptz → Date, json → parsed. */
export interface Queryable {
  /**
   * The rows. Throws pg.DatabaseError (see isUniqueViolation and its siblings), whose message names the statement, the
   * SQLSTATE, the constraint and the table and holds no value, or DatabaseAway.
   */
  query<R>(statement: Statement, values: readonly unknown[]): Promise<R[]>;
}

export interface Transaction extends Queryable {
  readonly database: Database;
  /**
   * Runs a statement without waiting for it, when its rows are not needed: it shares a round trip with what comes next,
   * at the end of `work` with COMMIT. When it fails nothing is committed, and `transaction` throws its error.
   */
  send(statement: Statement, values: readonly unknown[]): void;
  /** `run` is called when `work` has returned, to send what is best sent together; not when `work` throws. */
  beforeCommit(run: () => void): void;
  /** `run` is called once the transaction is committed, and never when it is rolled back. */
  afterCommit(run: () => void): void;
}

/** A connection outside the pool; it ends when its holder ends it, or breaks with an 'error' event. */
export type DedicatedConnection = pg.Client;

export interface Database extends Queryable {
  readonly service: string;
  /** For tests: what goes over it is not held back, has no span, and its errors hold values. */
  readonly pool: pg.Pool;
  /** Whether it fits the build; always, when it was opened without `migrations`. While closed, all here but `asItIs` and `pool` throws why. */
  readonly schema: SchemaGate;
  /** Also while the schema does not fit: for diagnosis, which only reads. */
  readonly asItIs: Pick<Database, 'query' | 'transaction'>;
  /**
   * For small single statements that come often: a few connections of their own, with several on their way on each at once, which costs
   * both sides half of what a connection for each does. One that waits for a lock holds up those behind it, so it fails after 100 ms
   * (isLockTimeout), having done nothing: `query` it then.
   */
  readonly pipelined: Queryable;
  /**
   * Commits what `work` did when it returns, rolls back when it throws. READ COMMITTED. Serialization failures and
   * deadlocks run `work` again, three times in all: outside `tx` it may do nothing but `afterCommit`.
   */
  transaction<T>(work: (tx: Transaction) => Promise<T>): Promise<T>;
  /** Prisma over the same pool: `new PrismaClient({ adapter: db.prismaAdapter() })`. */
  prismaAdapter(): PrismaPg;
  /** For session-level locks. The caller ends it. */
  dedicatedConnection(): Promise<DedicatedConnection>;
  close(): Promise<void>;
}

const attempts = 3;
const laneCount = 4;
const laneLockTimeoutMs = 100;
const begin = statement('begin', 'BEGIN');
const commit = statement('commit', 'COMMIT');
const rollback = statement('rollback', 'ROLLBACK');

/** Opens the pool; connects on first use. */
export function openDatabase(options: DatabaseOptions): Database {
  const { url, service, connections, statementTimeoutMs, planOnce, migrations } = options;
  const connection = {
    connectionString: url,
    application_name: `keytrail-${service}`,
    types: typeParsers,
    keepAlive: true,
    statement_timeout: statementTimeoutMs,
    connectionTimeoutMillis: statementTimeoutMs,
    // The server cancels first; this is for a server that no longer answers at all.
    query_timeout: statementTimeoutMs + 1000,
    ...(planOnce && { options: '-c plan_cache_mode=force_generic_plan' }),
  } satisfies pg.ClientConfig;
  const pool = new pg.Pool({
    ...connection,
    max: connections,
    idle_in_transaction_session_timeout: statementTimeoutMs * 4,
    // Statements that are not waited for share a round trip; each ends with a Sync of its own.
    pipeline: true,
  });
  // A connection that breaks, idle or between two statements of a transaction, tells so by the next statement and is
  // replaced; without listeners it would end the process.
  pool.on('error', () => {});
  pool.on('connect', (client) => client.on('error', () => {}));
  const lanes = openLanes({ ...connection, lock_timeout: laneLockTimeoutMs }, laneCount);
  const attributesOf = spanAttributes(url);

  async function run<R>(on: pg.Pool | pg.ClientBase, stmt: Statement, values: readonly unknown[], prepare = true) {
    // A statement that nobody asked for, as those of polling, is no trace of its own: they would crowd out all others.
    const span = trace.getActiveSpan()
      ? tracer().startSpan(stmt.name, { kind: SpanKind.CLIENT, attributes: attributesOf(stmt) })
      : undefined;
    try {
      const result = await on.query<R & pg.QueryResultRow>(
        prepare ? { name: stmt.name, text: stmt.text, values: values as unknown[] } : stmt.text,
      );
      if (result.rowCount !== null) span?.setAttribute(attr.dbRows, result.rowCount);
      return result;
    } catch (thrown) {
      const error = withoutValues(thrown, stmt);
      const state = isDatabaseError(error) ? (error.code ?? 'unknown') : (error as Error).name;
      span?.setAttributes({ [attr.errorType]: state, ...(isDatabaseError(error) && { [attr.dbStatusCode]: state }) });
      span?.setStatus({ code: SpanStatusCode.ERROR, message: state });
      throw error;
    } finally {
      span?.end();
    }
  }

  async function attempt<T>(work: (tx: Transaction) => Promise<T>): Promise<T> {
    const client = await pool.connect();
    const hooks: (() => void)[] = [];
    const lastSends: (() => void)[] = [];
    const started: Promise<unknown>[] = [];
    let failedSend: { readonly error: unknown } | undefined;
    let sends = 0;
    let broken: Error | undefined;
    let over = false;
    let ended = false;
    const start = <R>(stmt: Statement, values: readonly unknown[], prepare = true) => {
      const running = run<R>(client, stmt, values, prepare);
      const settled = running.catch((error) => {
        // The driver then no longer knows which statements this connection has prepared.
        if (!isDatabaseError(error)) broken ??= error;
      });
      started.push(settled);
      return running;
    };
    const tx: Transaction = {
      database,
      async query<R>(stmt: Statement, values: readonly unknown[]) {
        if (over) throw new Error(`statement ${stmt.name} after the end of its transaction`);
        return (await start<R>(stmt, values)).rows as R[];
      },
      send(stmt, values) {
        if (over) throw new Error(`statement ${stmt.name} after the end of its transaction`);
        sends++;
        start(stmt, values).catch((error) => {
          // Those behind a failed statement fail because of it.
          if (!isInFailedTransaction(error)) failedSend ??= { error };
        });
      },
      beforeCommit: (send) => void lastSends.push(send),
      afterCommit: (hook) => void hooks.push(hook),
    };
    let result: T;
    try {
      // Each statement is synchronized by itself: one that is on its way when BEGIN fails would commit alone.
      await start(begin, [], false);
      result = await work(tx);
      for (const send of lastSends) send();
      over = true;
      // The server cannot hold against COMMIT what the driver refused to send; that is known within this turn.
      if (sends > 0) await setImmediate();
      if (failedSend) throw failedSend.error;
      const { command } = await start(commit, [], false);
      ended = true;
      await Promise.all(started);
      if (command === 'ROLLBACK') throw new TransactionAborted();
    } catch (error) {
      over = true;
      await Promise.all(started);
      const because = isInFailedTransaction(error) || error instanceof TransactionAborted;
      const cause = !because ? error : failedSend ? failedSend.error : new TransactionAborted();
      if (isConnectionFailure(cause)) broken ??= cause as Error;
      if (!ended && !broken) {
        await run(client, rollback, [], false).catch((failure: Error) => {
          broken = failure;
        });
      }
      throw cause;
    } finally {
      client.release(broken);
    }
    for (const hook of hooks) {
      try {
        hook();
      } catch (error) {
        trace.getActiveSpan()?.recordException(error as Error);
      }
    }
    return result;
  }

  const asItIs: Database['asItIs'] = {
    query: <R>(stmt: Statement, values: readonly unknown[]) =>
      orAway(async () => (await run<R>(pool, stmt, values)).rows as R[]),
    async transaction(work) {
      for (let left = attempts - 1; ; left--) {
        try {
          return await orAway(() => attempt(work));
        } catch (error) {
          if (left === 0 || !isSerializationFailure(error)) throw error;
          // So that the same two do not meet again at once.
          await setTimeout(Math.random() * 20);
        }
      }
    },
  };
  const schema = migrations === undefined ? openGate : createSchemaGate((asked) => asItIs.query(asked, []), migrations);
  const mustFit = () => {
    if (schema.closed) throw schema.closed;
  };

  const database: Database = {
    service,
    pool,
    schema,
    asItIs,
    query: <R>(stmt: Statement, values: readonly unknown[]) =>
      orAway(async () => {
        mustFit();
        return (await run<R>(pool, stmt, values)).rows as R[];
      }),
    pipelined: {
      query: <R>(stmt: Statement, values: readonly unknown[]) =>
        orAway(() => {
          mustFit();
          return lanes.use(async (client) => (await run<R>(client, stmt, values)).rows as R[]);
        }),
    },
    async transaction(work) {
      mustFit();
      return asItIs.transaction(work);
    },
    prismaAdapter: () => new GuardedPrismaPg(pool, { server: serverAttributes(url), mustFit }),
    async dedicatedConnection() {
      mustFit();
      const client = new pg.Client(connection);
      client.on('error', () => {});
      await client.connect();
      return client;
    },
    async close() {
      await Promise.all([pool.end(), lanes.close()]);
    },
  };
  return database;
}

async function orAway<T>(work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    if (isConnectionFailure(error) && !(error instanceof DatabaseAway)) throw new DatabaseAway(error as Error);
    throw error;
  }
}

/** The attributes of a statement's span, made once per statement: OpenTelemetry's database conventions, never values. */
function spanAttributes(url: string) {
  const server = serverAttributes(url);
  const known = new Map<string, SpanAttributes>();
  return (stmt: Statement) => {
    let attributes = known.get(stmt.name);
    if (!attributes) {
      attributes = { ...server, [attr.dbOperation]: stmt.operation, [attr.dbSummary]: stmt.name };
      known.set(stmt.name, attributes);
    }
    return attributes;
  };
}

function serverAttributes(url: string): SpanAttributes {
  const { hostname, port, pathname } = new URL(url);
  return {
    [attr.dbSystem]: 'postgresql',
    [attr.dbNamespace]: pathname.slice(1),
    [attr.serverAddress]: hostname,
    [attr.serverPort]: Number(port || 5432),
  };
}
