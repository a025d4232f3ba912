import { timestampFromDate } from '@bufbuild/protobuf/wkt';
import { RevokedBy, type RootKeyChange } from '@keytrail/contracts';
import { type Ref, rootKeyChangeStatements } from '@keytrail/crypto';
import { addEvent, rootKeyChanged } from '@keytrail/events';
import { refuse } from '@keytrail/rpc';
import type { Transaction } from '@keytrail/storage';
import { announceDevice } from './rpc/device-list-events.ts';
import { refuseOtherRootKey } from './rpc/refuse-other-root-key.ts';
import type { RecordedEntry } from './store/device-log.ts';
import type { LockedUser } from './store/devices.ts';
import { removeRecovery } from './store/recoveries.ts';
import { devicesOfUser, revokeDevices, type StoredDevice, type Writer } from './store/revocations.ts';
import { hadRootKey, replaceRootKey } from './store/root-keys.ts';
import { refuseInvalidKeys, refuseInvalidSignatures } from './verify-keys.ts';

/** Whether a change that the previous root key did not sign is allowed. */
export type RootKeyReset = 'allowed' | 'refused';

/**
 * What can be said about a change without looking at the user. Throws KEY_INVALID for the new root key, SIGNATURE_INVALID,
 * ROOT_KEY_RESET_NOT_ALLOWED.
 */
export async function refuseInvalidChange(userId: string, change: RootKeyChange, reset: RootKeyReset): Promise<void> {
  await refuseInvalidKeys([{ field: 'root_key_change.new_root_key', publicKey: change.newRootKey, rules: 'signing' }]);
  const [byNew, byPrevious] = rootKeyChangeStatements(userId, change);
  if (!byNew) throw new Error('the new root key signs every change');
  await refuseInvalidSignatures([
    { field: 'root_key_change.new_signature', statement: byNew },
    ...(byPrevious ? [{ field: 'root_key_change.previous_signature', statement: byPrevious }] : []),
  ]);
  if (!byPrevious && reset !== 'allowed')
    throw refuse('ROOT_KEY_RESET_NOT_ALLOWED', 'the previous root key must sign the change', {
      metadata: { user_id: userId },
    });
}

/**
 * Makes the change, from the root key and the device-list version that the user has, to a root key that it never had. Recovery under the old
 * one ends. Throws DEVICE_LIST_CONFLICT, ROOT_KEY_MISMATCH, KEY_INVALID. The user must be locked.
 */
export async function makeChange(
  tx: Transaction,
  userId: string,
  user: LockedUser,
  change: RootKeyChange,
): Promise<RecordedEntry> {
  if (change.deviceListVersion !== user.device_list_version)
    throw refuse('DEVICE_LIST_CONFLICT', 'the device list has changed meanwhile', {
      metadata: { current_version: String(user.device_list_version) },
    });
  refuseOtherRootKey(userId, user.root_key, change.previousRootKey);
  if (await hadRootKey(tx, userId, change.newRootKey)) {
    const field = 'root_key_change.new_root_key';
    throw refuse('KEY_INVALID', `${field}: used-before`, {
      metadata: { field, rule: 'used-before' },
      fields: [{ field, description: 'the user has this root key, or had it before' }],
    });
  }
  const entry = await replaceRootKey(tx, userId, change);
  await removeRecovery(tx, userId);
  const changed = {
    userId,
    version: entry.version,
    signedByPrevious: change.previousSignature.length > 0,
    changedAt: timestampFromDate(entry.recorded_at),
  };
  await addEvent(tx, rootKeyChanged, changed, { aggregate: userId });
  return entry;
}

/** Revokes the devices that a change leaves out; `by` is the device that made the change. Answers the newest entry, if any. */
export async function revokeLeftOut(
  tx: Transaction,
  by: Ref,
  devices: readonly StoredDevice[],
  rootKey: Uint8Array,
  writer: Writer,
): Promise<RecordedEntry | undefined> {
  const revoker = { by: RevokedBy.ROOT_KEY_CHANGE, revokingDeviceId: by.deviceId } as const;
  const entries = await revokeDevices(tx, by.userId, devices, { rootKey, revoker }, writer);
  for (const entry of entries)
    await announceDevice(tx, { userId: by.userId, deviceId: entry.deviceId }, entry, { revoked: true });
  return entries.at(-1);
}

/** A new device is the first under a new root key: all devices that the user has are revoked. Throws as `makeChange`. */
export async function beginAnew(
  tx: Transaction,
  device: Ref,
  user: LockedUser,
  change: RootKeyChange,
  writer: Writer,
): Promise<void> {
  const devices = await devicesOfUser(tx, device.userId);
  await makeChange(tx, device.userId, user, change);
  await revokeLeftOut(
    tx,
    device,
    devices.filter(({ revoked_at }) => !revoked_at),
    change.newRootKey,
    writer,
  );
}
