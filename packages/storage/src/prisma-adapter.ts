import { attr, type SpanAttributes, SpanKind, SpanStatusCode, trace, tracer } from '@keytrail/telemetry';
import { PrismaPg } from '@prisma/adapter-pg';
import type { SqlQuery, SqlQueryable } from '@prisma/driver-adapter-utils';
import type pg from 'pg';

/** What Prisma's statements have in common with hand-written ones. */
export interface PrismaStatements {
  readonly server: SpanAttributes;
  /** Throws while the database does not fit the build. */
  readonly mustFit: () => void;
}

/** Prisma's adapter over a pool: its statements are held back by the gate, and have a span within a trace. */
export class GuardedPrismaPg extends PrismaPg {
  readonly #statements: PrismaStatements;

  constructor(pool: pg.Pool, statements: PrismaStatements) {
    super(pool, { onPoolError: () => {}, onConnectionError: () => {} });
    this.#statements = statements;
  }

  override async connect(): ReturnType<PrismaPg['connect']> {
    const adapter = await super.connect();
    const startTransaction = adapter.startTransaction.bind(adapter);
    adapter.startTransaction = async (level) => guarded(await startTransaction(level), this.#statements);
    return guarded(adapter, this.#statements);
  }
}

function guarded<Q extends SqlQueryable>(queryable: Q, { server, mustFit }: PrismaStatements): Q {
  const queryRaw = queryable.queryRaw.bind(queryable);
  const executeRaw = queryable.executeRaw.bind(queryable);
  queryable.queryRaw = async (query) => {
    mustFit();
    return inSpan(query, server, queryRaw, ({ rows }) => rows.length);
  };
  queryable.executeRaw = async (query) => {
    mustFit();
    return inSpan(query, server, executeRaw, (count) => count);
  };
  return queryable;
}

async function inSpan<R>(
  query: SqlQuery,
  server: SpanAttributes,
  run: (query: SqlQuery) => Promise<R>,
  rowsOf: (result: R) => number,
): Promise<R> {
  if (!trace.getActiveSpan()) return run(query);
  const operation = /^\s*(\w+)/.exec(query.sql)?.[1]?.toUpperCase() ?? '';
  const summary = `${operation} ${tableOf(query.sql)}`.trim();
  const attributes = { ...server, [attr.dbOperation]: operation, [attr.dbSummary]: summary };
  const span = tracer().startSpan(summary, { kind: SpanKind.CLIENT, attributes });
  try {
    const result = await run(query);
    span.setAttribute(attr.dbRows, rowsOf(result));
    return result;
  } catch (error) {
    const state = sqlStateOf(error);
    span.setAttributes({
      [attr.errorType]: state ?? (error as Error).name,
      ...(state && { [attr.dbStatusCode]: state }),
    });
    span.setStatus({ code: SpanStatusCode.ERROR, message: state ?? (error as Error).name });
    throw error;
  } finally {
    span.end();
  }
}

/** The first table that Prisma's SQL names: `FROM "public"."conversations"`. Values are never in it: they are parameters. */
function tableOf(sql: string): string {
  return /\b(?:FROM|INTO|UPDATE)\s+(?:"\w+"\.)?"(\w+)"/i.exec(sql)?.[1] ?? '';
}

function sqlStateOf(error: unknown): string | undefined {
  const { originalCode } = ((error as Error).cause ?? {}) as { originalCode?: unknown };
  return typeof originalCode === 'string' ? originalCode : undefined;
}
