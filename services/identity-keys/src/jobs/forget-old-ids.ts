import { purgeDeadLetters } from '@keytrail/events';
import { type Database, purgeRequestIds, requestIdRetentionMs } from '@keytrail/storage';
import type { Logger } from '@keytrail/telemetry';
import { purgeClaimPermissions } from '../store/claim-permissions.ts';
import { forgetClaims, type Shrunk, shrinkReplacedPrekeys } from '../store/forgotten-claims.ts';

const rowsAtOnce = 10_000;

export interface Forgotten extends Shrunk {
  readonly claims: number;
  readonly requestIds: number;
  readonly permissions: number;
}

/**
 * Forgets claims and request ids that are older than the retention, and permissions that are over. Of prekeys that no claim can be repeated for any more only the
 * SHA-256 stays; of replaced ones when `graceMs` are over too, by default at once.
 */
export async function forgetOldIds(db: Database, graceMs = 0): Promise<Forgotten> {
  const { claims, oneTime, kem } = await forgetClaims(db);
  // Only now: of claims that are still remembered none is older than the retention.
  const { signed, lastResort } = await shrinkReplacedPrekeys(db, Math.max(graceMs, requestIdRetentionMs + leewayMs));
  const requestIds = await all(() => purgeRequestIds(db, rowsAtOnce));
  const permissions = await all(() => purgeClaimPermissions(db, rowsAtOnce));
  return { claims, requestIds, permissions, oneTime, kem, signed, lastResort };
}

async function all(purge: () => Promise<number>): Promise<number> {
  let sum = 0;
  for (;;) {
    const purged = await purge();
    sum += purged;
    if (purged < rowsAtOnce) return sum;
  }
}

/** A claim that began before a rotation may end after it. */
const leewayMs = 3_600_000;

interface Forgetting {
  readonly db: Database;
  readonly log: Logger;
  readonly everyMs: number;
  /** How long replaced prekeys keep their bytes. */
  readonly graceMs: number;
}

/** Forgets periodically; returns how to stop, which waits for the run at hand. */
export function startForgetting({ db, log, everyMs, graceMs }: Forgetting) {
  let running = Promise.resolve();
  const timer = setInterval(() => {
    running = running
      .then(() => purgeDeadLetters(db))
      .then(() => forgetOldIds(db, graceMs))
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
