import { DatabaseAway, databaseErrorText } from '@keytrail/telemetry';
import pg from 'pg';
import type { Statement } from './statement.ts';

/** The error of a statement that PostgreSQL refused: `code` is the SQLSTATE, `constraint` the name of a violated one. */
export function isDatabaseError(error: unknown): error is pg.DatabaseError {
  return error instanceof pg.DatabaseError;
}

function hasState(error: unknown, state: string, constraint?: string): boolean {
  return (
    isDatabaseError(error) && error.code === state && (constraint === undefined || error.constraint === constraint)
  );
}

export function isUniqueViolation(error: unknown, constraint?: string): boolean {
  return hasState(error, '23505', constraint);
}

export function isCheckViolation(error: unknown, constraint?: string): boolean {
  return hasState(error, '23514', constraint);
}

export function isForeignKeyViolation(error: unknown, constraint?: string): boolean {
  return hasState(error, '23503', constraint);
}

/** `column` is the column that may not be NULL. */
export function isNotNullViolation(error: unknown, column?: string): boolean {
  return hasState(error, '23502') && (column === undefined || (error as pg.DatabaseError).column === column);
}

/** A serialization failure or a deadlock: the transaction is rolled back and may be run again. */
export function isSerializationFailure(error: unknown): boolean {
  return hasState(error, '40001') || hasState(error, '40P01');
}

/** The statement was cancelled, most often by `statement_timeout`. */
export function isStatementTimeout(error: unknown): boolean {
  return hasState(error, '57014');
}

/** The statement waited for a lock for longer than `lock_timeout`, and did nothing. */
export function isLockTimeout(error: unknown): boolean {
  return hasState(error, '55P03');
}

/** Refused because an earlier statement of the transaction had failed. */
export function isInFailedTransaction(error: unknown): boolean {
  return hasState(error, '25P02');
}

/**
 * Takes out of an error of PostgreSQL what may quote values of rows: its message, detail, hint, context and query. Changes
 * the error itself, so that it stays a pg.DatabaseError and no copy of the values is left. Other errors stay as they are.
 */
export function withoutValues(error: unknown, { name }: Statement): unknown {
  if (!isDatabaseError(error)) return error;
  for (const field of ['detail', 'hint', 'where', 'internalQuery'] as const) delete error[field];
  error.message = databaseErrorText(Object.assign(error, { statement: name })) ?? '';
  Error.captureStackTrace(error, withoutValues);
  return error;
}

/**
 * The database could not be reached, or went away, or what answers is no primary: a standby, also while it is being promoted, neither writes
 * (25006) nor tells its place (55000); a database that is being put back is not there for a moment (3D000). Of a COMMIT the
 * outcome is then unknown; request ids make a retry safe.
 */
export function isConnectionFailure(error: unknown): boolean {
  if (isDatabaseError(error)) return /^(08|57P0[123]|53300|25006|55000|3D000)/.test(error.code ?? '');
  if (!(error instanceof Error)) return false;
  if (error instanceof DatabaseAway) return true;
  const code = (error as { code?: unknown }).code;
  if (typeof code === 'string') return /^E(CONN|PIPE|TIMEDOUT|NOTFOUND|HOSTUNREACH|NETUNREACH|AI_AGAIN)/.test(code);
  return /^(Connection terminated|timeout expired|timeout exceeded|Query read timeout|Client has encountered a connection error)/.test(
    error.message,
  );
}

/** COMMIT answered with ROLLBACK: a statement had failed before, and `work` went on as if it had not. */
export class TransactionAborted extends Error {
  constructor() {
    super('the transaction was rolled back because one of its statements had failed');
    this.name = 'TransactionAborted';
  }
}
