import { timestampFromDate } from '@bufbuild/protobuf/wkt';
import type { Ref } from '@keytrail/crypto';
import { addEvent, deviceListChanged } from '@keytrail/events';
import type { Transaction } from '@keytrail/storage';
import type { RecordedEntry } from '../store/device-log.ts';

/** Tells that a device was registered, or revoked, as the log's entry says; in order per user. */
export function announceDevice(
  tx: Transaction,
  { userId, deviceId }: Ref,
  { version, recorded_at }: RecordedEntry,
  { revoked }: { readonly revoked: boolean },
): Promise<void> {
  const change = { userId, deviceId, version, revoked, changedAt: timestampFromDate(recorded_at) };
  return addEvent(tx, deviceListChanged, change, { aggregate: userId });
}
