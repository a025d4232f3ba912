import { NotificationKind } from '@keytrail/contracts';
import { addEvent, notificationRequested, prekeysLow } from '@keytrail/events';
import type { Database, Transaction } from '@keytrail/storage';
import { currentTraceparent } from '@keytrail/telemetry';
import { LRUCache } from 'lru-cache';
import { countNotices } from './prekey-metrics.ts';
import { type LowDevice, type Notice, noteLowPrekeys } from './store/low-prekey-notices.ts';

export interface LowPrekeys {
  /**
   * Has the devices told that their prekeys are low: once per filling of their pools, and again after the reminder time. A claim waits
   * for this before it answers, so that a notice lost in a crash is made up for by the repetition of the claim.
   */
  tell(devices: readonly LowDevice[]): Promise<void>;
}

export function createLowPrekeys(db: Database, { reminderMs }: { readonly reminderMs: number }): LowPrekeys {
  // Spares the question whether a device has been told; the table has the answer for all replicas.
  const told = new LRUCache<bigint, bigint>({ max: 10_000, ttl: reminderMs });

  return {
    async tell(devices) {
      const untold = devices.filter(({ deviceNumber, prekeysAdded }) => told.get(deviceNumber) !== prekeysAdded);
      if (untold.length === 0) return;
      await db.transaction(async (tx) => {
        await publishNotices(tx, await noteLowPrekeys(tx, untold, reminderMs));
      });
      for (const { deviceNumber, prekeysAdded } of untold) told.set(deviceNumber, prekeysAdded);
    },
  };
}

/** Has the devices told by an event each, and by a notification. */
export async function publishNotices(tx: Transaction, notices: readonly Notice[]): Promise<void> {
  for (const { user_id: userId, device_id: deviceId, one_time, kem } of notices)
    await addEvent(
      tx,
      prekeysLow,
      { userId, deviceId, oneTime: Number(one_time), kem: Number(kem) },
      { aggregate: userId },
    );
  if (notices.length === 0) return;
  const devices = notices.map(({ user_id: userId, device_id: deviceId }) => ({ userId, deviceId }));
  const notification = { kind: NotificationKind.PREKEYS_LOW, traceparent: currentTraceparent() };
  await addEvent(tx, notificationRequested.identitykeys, { devices, notification }, { aggregate: 'prekeys_low' });
  tx.afterCommit(() => countNotices(notices.length));
}
