import { type Counter, meter } from '@keytrail/telemetry';
import type { PoolCounts } from './store/prekeys.ts';

/** Why a one-time prekey was retired. */
export type Retirement = 'age' | 'device';

let retired: Counter | undefined;
let told: Counter | undefined;

export function countRetired({ oneTime, kem }: PoolCounts, because: Retirement): void {
  retired ??= meter().createCounter('keytrail.prekeys.retired', {
    description: 'One-time prekeys retired unclaimed, by kind and by what retired them',
  });
  if (oneTime > 0) retired.add(oneTime, { kind: 'one_time', because });
  if (kem > 0) retired.add(kem, { kind: 'kem', because });
}

export function countNotices(notices: number): void {
  told ??= meter().createCounter('keytrail.prekeys.low', {
    description: 'Notices to devices that a pool is low or a prekey overdue, reminders included',
  });
  if (notices > 0) told.add(notices);
}
