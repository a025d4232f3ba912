import type { Statement } from '@keytrail/storage';
import type { CheckCode } from './catalogue.ts';

export type Status = 'ok' | 'warn' | 'fail' | 'skip' | 'unknown';

export interface Outcome {
  readonly status: Status;
  /** One line. */
  readonly summary: string;
  /** Never a key, a token or a text. */
  readonly evidence?: Readonly<Record<string, string | number | bigint | boolean>>;
  /** What to do; with anything but ok. */
  readonly hint?: string;
  /** What others are to be compared with; see CheckResult in the contract. */
  readonly subjects?: readonly string[];
}

/** A check by asking: it throws when it cannot find out, which is `unknown`. */
export interface Probe {
  readonly code: CheckCode;
  run(signal: AbortSignal): Promise<Outcome>;
}

/** A check by one statement that only reads. The doctor runs the same statement itself when the service is down. */
export interface DatabaseCheck {
  readonly code: CheckCode;
  readonly statement: Statement;
  /** $1, … of the statement; for checks that compare, with what another service named. By default none. */
  values?(subjects: readonly string[]): readonly unknown[];
  judge(rows: readonly unknown[]): Outcome;
}

/** Declares a database check with the shape of its rows. */
export function databaseCheck<R>(check: {
  readonly code: CheckCode;
  readonly statement: Statement;
  values?(subjects: readonly string[]): readonly unknown[];
  judge(rows: readonly R[]): Outcome;
}): DatabaseCheck {
  return check as DatabaseCheck;
}
