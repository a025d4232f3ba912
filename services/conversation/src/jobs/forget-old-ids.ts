import { purgeDeadLetters, purgeInbox, startPurges } from '@keytrail/events';
import { type Database, purgeAuditLog, purgeRequestIds } from '@keytrail/storage';
import type { Logger } from '@keytrail/telemetry';

export interface Forgetting {
  readonly everyMs: number;
  readonly auditLogRetentionMs: number;
}

/** Forgets request ids, handled events, dead letters and audited actions that are past their retention. */
export function forgetOldIds(
  db: Database,
  log: Logger,
  { everyMs, auditLogRetentionMs }: Forgetting,
): { stop(): Promise<void> } {
  return startPurges({
    everyMs,
    log,
    purges: {
      'request ids': (most) => purgeRequestIds(db, most),
      'handled events': (most) => purgeInbox(db, most),
      'dead letters': (most) => purgeDeadLetters(db, most),
      'audit log': (most) => purgeAuditLog(db, auditLogRetentionMs, most),
    },
  });
}
