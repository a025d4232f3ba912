import { purgeDeadLetters, startPurges, startRounds } from '@keytrail/events';
import { type Database, purgeAuditLog, purgeRequestIds, requestIdRetentionMs } from '@keytrail/storage';
import type { Logger } from '@keytrail/telemetry';
import { purgeClaimPermissions } from '../store/claim-permissions.ts';
import { forgetClaims, type Shrunk, shrinkReplacedPrekeys } from '../store/forgotten-claims.ts';

/** What was forgotten: claims, and the bytes of prekeys. */
export interface Forgotten extends Shrunk {
  readonly claims: number;
}

/**
 * Forgets claims that are older than the retention. Of prekeys that no claim can be repeated for any more only the SHA-256 stays; of
 * replaced ones when `graceMs` are over too, by default at once.
 */
export async function forgetOldClaims(db: Database, graceMs = 0): Promise<Forgotten> {
  const { claims, oneTime, kem } = await forgetClaims(db);
  // Only now: of claims that are still remembered none is older than the retention.
  const { signed, lastResort } = await shrinkReplacedPrekeys(db, Math.max(graceMs, requestIdRetentionMs + leewayMs));
  return { claims, oneTime, kem, signed, lastResort };
}

/** A claim that began before a rotation may end after it. */
const leewayMs = 3_600_000;

interface Forgetting {
  readonly db: Database;
  readonly log: Logger;
  readonly everyMs: number;
  /** How long replaced prekeys keep their bytes. */
  readonly graceMs: number;
  readonly auditLogRetentionMs: number;
}

/** Forgets again and again: claims with their prekeys in one loop, each other kind in a loop of its own. */
export function startForgetting({ db, log, everyMs, graceMs, auditLogRetentionMs }: Forgetting): {
  stop(): Promise<void>;
} {
  const claims = startRounds({
    what: 'the forgetting of claims',
    everyMs,
    log,
    async round() {
      log.info(await forgetOldClaims(db, graceMs), 'old claims forgotten');
      return false;
    },
  });
  const purges = startPurges({
    everyMs,
    log,
    purges: {
      'request ids': (most) => purgeRequestIds(db, most),
      'claim permissions': (most) => purgeClaimPermissions(db, most),
      'dead letters': (most) => purgeDeadLetters(db, most),
      'audit log': (most) => purgeAuditLog(db, auditLogRetentionMs, most),
    },
  });
  return {
    async stop() {
      await Promise.all([claims.stop(), purges.stop()]);
    },
  };
}
