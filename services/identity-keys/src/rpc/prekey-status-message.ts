import { create } from '@bufbuild/protobuf';
import { timestampFromDate } from '@bufbuild/protobuf/wkt';
import { type PrekeyStatus, PrekeyStatusSchema } from '@keytrail/contracts';
import type { PrekeyLimits } from '../domain/prekey-limits.ts';
import type { PrekeyStatusRow } from '../store/prekey-status.ts';

export function prekeyStatusMessage(row: PrekeyStatusRow, { lowBelow, refillTo }: PrekeyLimits): PrekeyStatus {
  const counts = { oneTime: Number(row.one_time), kem: Number(row.kem) };
  return create(PrekeyStatusSchema, {
    counts,
    lowBelow,
    refillTo,
    refillDue: counts.oneTime < lowBelow || counts.kem < lowBelow,
    signedPrekeyId: Number(row.signed_prekey_id),
    signedPrekeyAddedAt: timestampFromDate(row.signed_prekey_added_at),
    signedPrekeyDue: row.signed_prekey_due,
    lastResortPrekeyId: Number(row.last_resort_prekey_id),
    lastResortPrekeyAddedAt: timestampFromDate(row.last_resort_prekey_added_at),
    lastResortPrekeyDue: row.last_resort_prekey_due,
    retired: { oneTime: Number(row.one_time_retired), kem: Number(row.kem_retired) },
    overAged: { oneTime: Number(row.one_time_over_aged), kem: Number(row.kem_over_aged) },
  });
}
