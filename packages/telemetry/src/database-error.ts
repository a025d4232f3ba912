/**
 * What may be told of an error of PostgreSQL: its SQLSTATE, the names of constraint and table, and `statement`, the name of
 * the statement when storage has added it. Undefined for other errors. Recognized by its fields, so that no error of a
 * database that came another way than through storage is overlooked.
 */
export function databaseErrorText(error: Error): string | undefined {
  if (error.name.startsWith('PrismaClient') || error.name === 'DriverAdapterError')
    return `database error ${name(error, 'code') ?? 'unknown'}`;
  const code = name(error, 'code');
  if (code === undefined || !/^[0-9A-Z]{5}$/.test(code) || name(error, 'severity') === undefined) return undefined;
  const statement = name(error, 'statement');
  const constraint = name(error, 'constraint');
  const table = name(error, 'table');
  return [
    `SQLSTATE ${code}`,
    ...(statement ? [`statement ${statement}`] : []),
    ...(constraint ? [`constraint ${constraint}`] : []),
    ...(table ? [`table ${table}`] : []),
  ].join(', ');
}

/** The database cannot be reached, or went away: not the fault of the call, which may be made again. Of a COMMIT the outcome is unknown. */
export class DatabaseAway extends Error {
  constructor(cause: Error) {
    super(`the database cannot be reached: ${databaseErrorText(cause) ?? cause.message}`, { cause });
    this.name = 'DatabaseAway';
  }
}

/** The database has another schema than the build needs, so that nothing may be asked of it; that ends when it is migrated, or another build runs. */
export class DatabaseUnfit extends Error {
  readonly reason: 'SCHEMA_BEHIND' | 'BUILD_BEHIND';
  /** Names of migrations by what is wrong with them, as a refusal carries them. */
  readonly metadata: Readonly<Record<string, string>>;

  constructor(reason: DatabaseUnfit['reason'], message: string, metadata: Readonly<Record<string, string>>) {
    super(message);
    this.name = 'DatabaseUnfit';
    this.reason = reason;
    this.metadata = metadata;
  }
}

// Not reachable, timed out, closed the connection, no connection free in time.
const prismaAway = ['P1001', 'P1002', 'P1008', 'P1017', 'P2024'];

// A statement or a wait for a lock that took too long, and conflicts that were not settled by running a transaction again.
const tooBusy = ['57014', '55P03', '40001', '40P01'];

/** Whether an error says that the database is away, or too busy to answer in time, through storage or through Prisma. */
export function isDatabaseAway(error: unknown): error is Error {
  if (!(error instanceof Error)) return false;
  return (
    error instanceof DatabaseAway ||
    (name(error, 'severity') !== undefined && tooBusy.includes(name(error, 'code') ?? '')) ||
    (error.name.startsWith('PrismaClient') && prismaAway.includes(name(error, 'code') ?? ''))
  );
}

function name(error: Error, field: string): string | undefined {
  const value = (error as unknown as Record<string, unknown>)[field];
  return typeof value === 'string' ? value : undefined;
}
