import { purgeDeadLetters, purgeInbox, startPurges } from '@keytrail/events';
import { type Database, purgeAuditLog, purgeRequestIds } from '@keytrail/storage';
import type { Logger } from '@keytrail/telemetry';
import { purgeDiscardedSessions } from '../store/discarded-sessions.ts';
import { purgeEndedKeyRequests } from '../store/key-requests.ts';

export interface Forgetting {
  readonly everyMs: number;
  readonly endedKeyRequestRetentionMs: number;
  readonly auditLogRetentionMs: number;
}

/** Forgets request ids, handled events, dead letters, ended key requests and audited actions that are past their retention. Returns how to stop that. */
export function startForgetting(
  db: Database,
  log: Logger,
  { everyMs, endedKeyRequestRetentionMs, auditLogRetentionMs }: Forgetting,
): { stop(): Promise<void> } {
  return startPurges({
    everyMs,
    log,
    purges: {
      'request ids': (most) => purgeRequestIds(db, most),
      'handled events': (most) => purgeInbox(db, most),
      'dead letters': (most) => purgeDeadLetters(db, most),
      'discarded sessions': (most) => purgeDiscardedSessions(db, most),
      'ended key requests': (most) => purgeEndedKeyRequests(db, endedKeyRequestRetentionMs, most),
      'audit log': (most) => purgeAuditLog(db, auditLogRetentionMs, most),
    },
  });
}
