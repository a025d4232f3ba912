import { type Rounds, startRounds } from '@keytrail/events';
import type { Database } from '@keytrail/storage';
import type { Logger } from '@keytrail/telemetry';
import type { PrekeyLimits } from '../domain/prekey-limits.ts';
import { publishNotices } from '../low-prekeys.ts';
import { countRetired } from '../prekey-metrics.ts';
import { nextPageOfDevices, noteDuePrekeys, remindDevices } from '../store/low-prekey-notices.ts';
import type { PoolCounts } from '../store/prekeys.ts';
import { retireOverAgedPrekeys } from '../store/retired-prekeys.ts';

export interface PrekeyWatch {
  readonly db: Database;
  readonly limits: PrekeyLimits;
  readonly reminderMs: number;
}

/** Devices in a page, and reminders in a transaction. */
const devicesAtOnce = 1_000;
const remindersAtOnce = 500;
/** So that a retirement of over-aged prekeys never holds many devices. */
const retiredDevicesAtOnce = 20;

/**
 * Looks at the next page of devices: retires prekeys that have waited for too long, and tells devices that have something to do about their
 * prekeys and have not been told, whatever became of the claim that should have told them. Nothing while another replica is at it.
 */
export async function sweepPrekeys({ db, limits }: PrekeyWatch, pageSize = devicesAtOnce): Promise<PoolCounts> {
  const page = await db.transaction(async (tx) => {
    const devices = await nextPageOfDevices(tx, pageSize, limits);
    const fresh = devices.filter(({ over_aged }) => !over_aged).map(({ device_number }) => device_number);
    if (fresh.length > 0) await publishNotices(tx, await noteDuePrekeys(tx, fresh, limits));
    return devices;
  });
  const overAged = page.filter(({ over_aged }) => over_aged).map(({ device_number }) => device_number);
  const retired = { oneTime: 0, kem: 0 };
  for (let from = 0; from < overAged.length; from += retiredDevicesAtOnce) {
    const some = overAged.slice(from, from + retiredDevicesAtOnce);
    const { oneTime, kem } = await retireOverAgedPrekeys(db, some, limits.oneTimeMaxAgeMs);
    retired.oneTime += oneTime;
    retired.kem += kem;
    countRetired({ oneTime, kem }, 'age');
    await db.transaction(async (tx) => publishNotices(tx, await noteDuePrekeys(tx, some, limits)));
  }
  return retired;
}

/** Tells devices again that were told a while ago and still have it to do. Returns how many; replicas share them. */
export async function remindOfPrekeys({ db, limits, reminderMs }: PrekeyWatch): Promise<number> {
  let sum = 0;
  for (;;) {
    const notices = await db.transaction(async (tx) => {
      const due = await remindDevices(tx, limits, { reminderMs, limit: remindersAtOnce });
      await publishNotices(tx, due);
      return due.length;
    });
    sum += notices;
    if (notices < remindersAtOnce) return sum;
  }
}

/** Does both, a page each time: all devices are looked at within (devices / 1,000) times `everyMs`. */
export function startWatchingPrekeys(watch: PrekeyWatch, { everyMs, log }: { everyMs: number; log: Logger }): Rounds {
  return startRounds({
    what: 'the watch over prekeys',
    everyMs,
    log,
    async round() {
      await remindOfPrekeys(watch);
      const { oneTime, kem } = await sweepPrekeys(watch);
      if (oneTime + kem > 0) log.info({ oneTime, kem }, 'over-aged prekeys retired');
      return false;
    },
  });
}
