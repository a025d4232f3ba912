import { startGauges } from '@keytrail/events';
import type { Database } from '@keytrail/storage';
import { count, type Logger, metricAttr } from '@keytrail/telemetry';
import { readLowDevices } from './store/low-devices.ts';
import type { PoolCounts } from './store/prekeys.ts';

/** Why a one-time prekey was retired. */
export type Retirement = 'age' | 'device';

export function countRetired({ oneTime, kem }: PoolCounts, because: Retirement): void {
  for (const [pool, retired] of Object.entries({ one_time: oneTime, kem }))
    if (retired > 0)
      count('prekeysRetired', retired, { [metricAttr.prekeyPool]: pool, [metricAttr.retiredBecause]: because });
}

export function countNotices(notices: number): void {
  if (notices > 0) count('prekeyNotices', notices);
}

/** Tells how many devices are low on prekeys, or have none left. */
export function startPrekeyGauges(
  db: Database,
  { everyMs, log }: { readonly everyMs: number; readonly log: Logger },
): { stop(): Promise<void> } {
  return startGauges({
    what: 'the look at prekey pools',
    gauges: ['devicesLow', 'devicesEmpty'],
    everyMs,
    log,
    async read() {
      const { low, emptyOneTime, emptyKem } = await readLowDevices(db);
      return (observe) => {
        observe('devicesLow', low);
        observe('devicesEmpty', emptyOneTime, { [metricAttr.prekeyPool]: 'one_time' });
        observe('devicesEmpty', emptyKem, { [metricAttr.prekeyPool]: 'kem' });
      };
    },
  });
}
