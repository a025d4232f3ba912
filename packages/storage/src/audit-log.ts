import { rule, setting } from '@keytrail/settings';
import type { Queryable } from './database.ts';
import { statement } from './statement.ts';

const day = 24 * 60 * 60 * 1000;

/** Younger rows the database keeps, whatever the setting says. */
export const auditLogKeptAtLeastMs = 30 * day;

/** For services with a table `audit_log`. */
export const auditSettings = {
  auditLogRetentionMs: setting(
    'KEYTRAIL_AUDIT_LOG_RETENTION_MS',
    rule
      .durationMs()
      .min(auditLogKeptAtLeastMs)
      .default(730 * day),
    'how long the audit log tells what operators did; 30 days at least',
  ),
} as const;

const purge = statement(
  'purge_audit_log',
  `DELETE FROM audit_log WHERE number IN (
     SELECT number FROM audit_log WHERE happened_at < now() - $1 * interval '1 millisecond' ORDER BY number LIMIT $2)
   RETURNING 1`,
);

/** Deletes what is older, at most `limit` rows. How many. */
export async function purgeAuditLog(db: Queryable, olderThanMs: number, limit = 5_000): Promise<number> {
  return (await db.query(purge, [Math.max(olderThanMs, auditLogKeptAtLeastMs), limit])).length;
}
