import { type Database, purgeRequestIds, requestIdRetentionMs, statement } from '@keytrail/storage';
import type { Logger } from '@keytrail/telemetry';
import { purgeClaimPermissions } from '../store/claim-permissions.ts';

const purgeClaims = statement(
  'claims_purge',
  `DELETE FROM claims WHERE (caller, claim_id) IN
     (SELECT caller, claim_id FROM claims WHERE claimed_at < now() - $1 * interval '1 millisecond' LIMIT $2)
   RETURNING 1`,
);

const batch = 10_000;

/** Forgets claims and request ids that are older than the retention, and permissions that are over; tells how many. Claimed prekeys stay. */
export async function forgetOldIds(db: Database): Promise<{ claims: number; requestIds: number; permissions: number }> {
  const claims = (await db.query(purgeClaims, [requestIdRetentionMs, batch])).length;
  const permissions = await purgeClaimPermissions(db, batch);
  return { claims, requestIds: await purgeRequestIds(db, batch), permissions };
}

/** Forgets periodically; returns how to stop, which waits for the run at hand. */
export function startForgetting({ db, log, everyMs }: { db: Database; log: Logger; everyMs: number }) {
  let running = Promise.resolve();
  const timer = setInterval(() => {
    running = running
      .then(() => forgetOldIds(db))
      .then(
        (forgotten) => log.info(forgotten, 'old ids forgotten'),
        (error: unknown) => log.warn({ err: error }, 'old ids could not be forgotten'),
      );
  }, everyMs);
  timer.unref();
  return {
    async stop(): Promise<void> {
      clearInterval(timer);
      await running;
    },
  };
}
