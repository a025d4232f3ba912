import { attr, SpanKind, SpanStatusCode, trace, tracer } from '@keytrail/telemetry';
import { PrismaPg } from '@prisma/adapter-pg';
import type { SqlQuery, SqlQueryable } from '@prisma/driver-adapter-utils';
import type pg from 'pg';

type SpanAttributes = Readonly<Record<string, string | number>>;

/** Prisma's adapter over a pool, with a span for each statement that Prisma sends within a trace, as for hand-written ones. */
export class TracedPrismaPg extends PrismaPg {
  readonly #server: SpanAttributes;

  constructor(pool: pg.Pool, server: SpanAttributes) {
    super(pool, { onPoolError: () => {}, onConnectionError: () => {} });
    this.#server = server;
  }

  override async connect(): ReturnType<PrismaPg['connect']> {
    const adapter = await super.connect();
    const startTransaction = adapter.startTransaction.bind(adapter);
    adapter.startTransaction = async (level) => traced(await startTransaction(level), this.#server);
    return traced(adapter, this.#server);
  }
}

function traced<Q extends SqlQueryable>(queryable: Q, server: SpanAttributes): Q {
  const queryRaw = queryable.queryRaw.bind(queryable);
  const executeRaw = queryable.executeRaw.bind(queryable);
  queryable.queryRaw = (query) => inSpan(query, server, queryRaw, ({ rows }) => rows.length);
  queryable.executeRaw = (query) => inSpan(query, server, executeRaw, (count) => count);
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
