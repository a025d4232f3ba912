import { timestampFromDate } from '@bufbuild/protobuf/wkt';
import type { Ref } from '@keytrail/crypto';
import { addEvent, prekeysDrained } from '@keytrail/events';
import type { Database } from '@keytrail/storage';
import { attr, count, type Logger, pseudonym } from '@keytrail/telemetry';
import { LRUCache } from 'lru-cache';
import type { Scope } from './domain/claim-bill.ts';
import { noteDrained } from './store/drain-notices.ts';

/** How a claim ended. */
export type ClaimOutcome = 'taken' | 'repeated' | 'limited';

/** Shows a drain of prekeys: by metrics, and by an event and a log line once per device and hour. */
export interface DrainSignals {
  claimed(outcome: ClaimOutcome): void;
  /** A claim was refused by the limit of a scope; `target` is the device that it protects, if any. */
  limited(scope: Scope, target: Ref | undefined): Promise<void>;
  /** Devices that had no one-time KEM prekey left. */
  lastResort(devices: readonly Ref[]): Promise<void>;
}

const quietMs = 3_600_000;

export function createDrainSignals({ db, log }: { db: Database; log: Pick<Logger, 'warn'> }): DrainSignals {
  // Spares the question whether it was told; the table has the answer for all replicas.
  const told = new LRUCache<string, true>({ max: 10_000, ttl: quietMs });

  /** A signal that is lost must not cost the answer. */
  async function tell(devices: readonly Ref[], limited: boolean): Promise<void> {
    const untold = devices.filter((device) => !told.has(nameOf(device)));
    if (untold.length === 0) return;
    for (const device of untold) told.set(nameOf(device), true);
    try {
      const noted = await db.transaction(async (tx) => {
        const drained = await noteDrained(tx, untold, quietMs);
        const drainedAt = timestampFromDate(new Date());
        for (const { userId, deviceId } of drained)
          await addEvent(tx, prekeysDrained, { userId, deviceId, limited, drainedAt }, { aggregate: userId });
        return drained;
      });
      for (const { userId, deviceId } of noted)
        log.warn({ user: pseudonym(userId), device: pseudonym(deviceId), limited }, "a device's prekeys are drained");
    } catch (err) {
      for (const device of untold) told.delete(nameOf(device));
      log.warn({ err }, 'a drain of prekeys could not be told');
    }
  }

  return {
    claimed: (outcome) => count('claims', 1, { [attr.claimOutcome]: outcome }),
    async limited(scope, target) {
      count('claimsLimited', 1, { [attr.claimLimitedBy]: scope });
      if (target !== undefined) await tell([target], true);
    },
    async lastResort(devices) {
      if (devices.length === 0) return;
      count('lastResortClaims', devices.length);
      await tell(devices, false);
    },
  };
}

function nameOf({ userId, deviceId }: Ref): string {
  return `${userId}/${deviceId}`;
}
