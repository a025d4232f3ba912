import { timestampFromMs } from '@bufbuild/protobuf/wkt';
import {
  createRecoveryKey,
  createRootKey,
  deviceRevocationText,
  openRecovery,
  parseRecoveryKey,
  recoveryKeyText,
  type SafetyNumber,
  safetyNumber,
  sealRecovery,
} from '@keytrail/crypto';
import { equalBytes, randomUuid } from './bytes.ts';
import { RootKeyUnknownError, SafetyNumberOfOneselfError } from './errors.ts';
import type { StoredDevice } from './key-store.ts';
import { currentUnder, takeOver } from './linking.ts';
import { certifiedBy, pendingUnder, type RegistrationParts, storedOrMade, upload } from './registration.ts';
import { onceMoreOnConflict, rootKeyChange } from './root-key-change.ts';
import type { Operation } from './tracing.ts';

/**
 * Makes a recovery key, and has the service keep the root key sealed by it, in place of an earlier one. The text is shown to the user once;
 * nobody else has it.
 *
 * @throws RefusalError (`ROOT_KEY_MISMATCH`: the root key is another one by now).
 */
export async function makeRecoveryKey(parts: RegistrationParts, operation: Operation): Promise<string> {
  const { calls, primitives } = parts;
  const { userId, rootKey } = await parts.own.registered();
  const recoveryKey = createRecoveryKey(primitives);
  const sealedRootKey = sealRecovery(primitives, { recoveryKey, userId, rootKey });
  const request = { requestId: randomUuid(primitives), rootKey: rootKey.publicKey, sealedRootKey };
  await calls.call(operation, (options) => calls.identityKeys.setRecovery(request, options));
  return recoveryKeyText(recoveryKey);
}

/**
 * Registers this device by the user's recovery key alone. A device that is registered under a root key that the user gave up takes over the
 * present one.
 *
 * @throws NotRegisteredError (the user's list has this device no more), RecoveryKeyTextError, RecoveryError, RootKeyNotCurrentError, DeviceListRefusedError, RefusalError (`NOT_FOUND_OR_NOT_PERMITTED`: no
 *   recovery was set up, or the root key changed since).
 */
export async function recover(parts: RegistrationParts, operation: Operation, text: string): Promise<void> {
  const { calls, primitives, store, own } = parts;
  const recoveryKey = parseRecoveryKey(text);
  const made = await storedOrMade(parts);
  if (made.state === 'registered' && (await isCurrent(parts, operation, made))) return;
  const kept = await calls.call(operation, (options) => calls.identityKeys.getRecovery({}, options));
  const { userId } = own;
  const { rootKey: publicKey, sealedRootKey: sealed } = kept;
  const rootKey = openRecovery(primitives, { recoveryKey, userId, rootKey: publicKey, sealed });
  const list = await currentUnder(parts, operation, rootKey.publicKey);
  if (made.state === 'registered') return takeOver(parts, made, rootKey, list);
  const device = certifiedBy(parts, made, rootKey);
  await store.saveDevice(device);
  await upload(parts, operation, device);
}

async function isCurrent(parts: RegistrationParts, operation: Operation, { rootKey }: StoredDevice): Promise<boolean> {
  const [list] = await parts.directory.current(operation, [parts.own.userId]);
  return list !== undefined && rootKey !== undefined && equalBytes(list.rootKey, rootKey.publicKey);
}

/** @throws RootKeyNotCurrentError, DeviceListRefusedError, RefusalError (`NOT_FOUND_OR_NOT_PERMITTED`: no such device). */
export async function revokeDevice(parts: RegistrationParts, operation: Operation, deviceId: string): Promise<void> {
  const { calls, primitives, clock, directory } = parts;
  const { userId, rootKey } = await parts.own.registered();
  const list = await currentUnder(parts, operation, rootKey.publicKey);
  const device = list.devices.find((each) => each.deviceId === deviceId);
  const none = new Uint8Array(32);
  const { identityKey, signingKey } = device ?? { identityKey: none, signingKey: none };
  const ms = clock.now().getTime();
  const text = deviceRevocationText({ userId, deviceId, identityKey, signingKey }, BigInt(ms));
  const request = {
    requestId: randomUuid(primitives),
    device: { userId, deviceId },
    revokedAt: timestampFromMs(ms),
    signature: primitives.ed25519.sign(rootKey.privateKey, text),
  };
  await calls.call(operation, (options) => calls.identityKeys.revokeDevice(request, options));
  if (deviceId !== parts.own.deviceId) await directory.current(operation, [userId]);
}

/**
 * For a user who has lost every device and the recovery key: begins anew on this device, with a new root key that nobody signed for. All other
 * devices are revoked; every peer sees a reset.
 *
 * @throws DeviceListRefusedError, RefusalError (`ROOT_KEY_RESET_NOT_ALLOWED`, `DEVICE_LIST_CONFLICT`, `DEVICE_ALREADY_REGISTERED`).
 */
export async function resetIdentity(parts: RegistrationParts, operation: Operation): Promise<void> {
  const made = await storedOrMade(parts);
  if (made.state === 'registered') throw new Error('this device is registered: it can change the root key');
  await onceMoreOnConflict(async () => {
    const { directory, own, primitives, store } = parts;
    if (made.rootKey && (await pendingUnder(parts, made.rootKey.publicKey))) return upload(parts, operation, made);
    const [list] = await directory.current(operation, [own.userId]);
    const rootKey = createRootKey(primitives);
    const device = certifiedBy(parts, made, rootKey);
    const change = list && list.version > 0n ? rootKeyChange(parts, list, rootKey) : undefined;
    await store.saveDevice(device);
    await upload(parts, operation, device, { rootKeyChange: change, before: made });
    await directory.current(operation, [own.userId]);
  });
}

/**
 * The safety number with a user, of the root keys that this device trusts for both.
 *
 * @throws SafetyNumberOfOneselfError, RootKeyUnknownError, DeviceListRefusedError, RefusalError.
 */
export async function safetyNumberWith(
  { own, rootKeys, directory }: RegistrationParts,
  operation: Operation,
  userId: string,
): Promise<SafetyNumber> {
  if (userId === own.userId) throw new SafetyNumberOfOneselfError();
  const { rootKey } = await own.registered();
  let theirs = await rootKeys.pinned(userId);
  if (theirs === undefined) {
    // Believing a list pins its root key.
    await directory.current(operation, [userId]);
    theirs = await rootKeys.pinned(userId);
  }
  if (theirs === undefined) throw new RootKeyUnknownError(userId);
  return safetyNumber({ userId: own.userId, rootKey: rootKey.publicKey }, { userId, rootKey: theirs });
}
