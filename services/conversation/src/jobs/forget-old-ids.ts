import { purgeDeadLetters, purgeInbox, startPurges } from '@keytrail/events';
import { type Database, purgeRequestIds } from '@keytrail/storage';
import type { Logger } from '@keytrail/telemetry';

/** Forgets request ids, handled events and dead letters that are past their retention. */
export function forgetOldIds(db: Database, log: Logger, everyMs: number): { stop(): Promise<void> } {
  return startPurges({
    everyMs,
    log,
    purges: {
      'request ids': (most) => purgeRequestIds(db, most),
      'handled events': (most) => purgeInbox(db, most),
      'dead letters': (most) => purgeDeadLetters(db, most),
    },
  });
}
