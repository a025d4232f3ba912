/** What the command ends with; `keytrail --help` prints the same. */
export const exitCodes = {
  ok: 0,
  /** The service refused, or failed: its reason and the trace id are on stderr. */
  refused: 1,
  /** The command line, its target or its token cannot be used. */
  usage: 2,
  /** Nothing answered. */
  unreachable: 3,
  /** What was looked at is not whole: hops of a trace are missing. */
  incomplete: 4,
} as const;

/** Ends the command with 2. */
export class UsageError extends Error {}
