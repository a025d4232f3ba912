import { create, fromBinary, toBinary } from '@bufbuild/protobuf';
import { timestampFromMs } from '@bufbuild/protobuf/wkt';
import {
  type ChangeRootKeyRequest,
  ChangeRootKeyRequestSchema,
  type ChangeRootKeyResponse,
  DeviceCertificateSchema,
  type DeviceList,
  type RootKeyChange,
  RootKeyChangeSchema,
} from '@keytrail/contracts';
import {
  certifyDevice,
  createRecoveryKey,
  createRootKey,
  deviceRevocationText,
  type KeyPair,
  openRecovery,
  parseRecoveryKey,
  recoveryKeyText,
  rootKeyChangeText,
  type SafetyNumber,
  safetyNumber,
  sealRecovery,
} from '@keytrail/crypto';
import { randomUuid } from './bytes.ts';
import { isDecided, RefusalError, RootKeyUnknownError } from './errors.ts';
import { currentUnder } from './linking.ts';
import { certifiedBy, pendingUnder, type RegistrationParts, storedOrMade, upload } from './registration.ts';
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
 * Registers this device by the user's recovery key alone.
 *
 * @throws RecoveryKeyTextError, RecoveryError, RootKeyNotCurrentError, DeviceListRefusedError, RefusalError (`NOT_FOUND_OR_NOT_PERMITTED`: no
 *   recovery was set up, or the root key changed since).
 */
export async function recover(parts: RegistrationParts, operation: Operation, text: string): Promise<void> {
  const { calls, primitives, store, own } = parts;
  const recoveryKey = parseRecoveryKey(text);
  const made = await storedOrMade(parts);
  if (made.state === 'registered') return;
  const kept = await calls.call(operation, (options) => calls.identityKeys.getRecovery({}, options));
  const { userId } = own;
  const { rootKey: publicKey, sealedRootKey: sealed } = kept;
  const rootKey = openRecovery(primitives, { recoveryKey, userId, rootKey: publicKey, sealed });
  await currentUnder(parts, operation, rootKey.publicKey);
  const device = certifiedBy(parts, made, rootKey);
  await store.saveDevice(device);
  await upload(parts, operation, device);
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

export interface ChangedRootKey {
  /** 32 bytes, Ed25519. */
  readonly rootKey: Uint8Array;
  /** Devices that were left out. */
  readonly revoked: readonly string[];
}

const changeName = 'change root key';

/**
 * Gives the user another root key, signed for by the present one. Devices in `keep` (all, when left out; this one always) are certified by the new
 * root key and are to be linked again, the rest are revoked. The recovery is removed. What was not answered is sent again as it was.
 *
 * @throws RootKeyNotCurrentError, DeviceListRefusedError, RefusalError (`DEVICE_LIST_CONFLICT`: the list changed twice meanwhile).
 */
export async function changeRootKey(
  parts: RegistrationParts,
  operation: Operation,
  keep?: readonly string[],
): Promise<ChangedRootKey> {
  return onceMoreOnConflict(async () => {
    const { calls, store } = parts;
    const pending = await store.pending(changeName);
    const { request, privateKey } = pending?.secret
      ? { request: fromBinary(ChangeRootKeyRequestSchema, pending.content), privateKey: pending.secret }
      : await prepareChange(parts, operation, keep);
    let answer: ChangeRootKeyResponse;
    try {
      answer = await calls.call(operation, (options) => calls.identityKeys.changeRootKey(request, options));
    } catch (error) {
      if (isDecided(error)) await store.removePending(changeName);
      throw error;
    }
    const rootKey = { publicKey: request.rootKeyChange?.newRootKey ?? new Uint8Array(), privateKey };
    await adopt(parts, rootKey, request);
    await parts.directory.current(operation, [parts.own.userId]);
    return { rootKey: rootKey.publicKey, revoked: answer.revokedDeviceIds };
  });
}

async function prepareChange(
  parts: RegistrationParts,
  operation: Operation,
  keep: readonly string[] | undefined,
): Promise<{ request: ChangeRootKeyRequest; privateKey: Uint8Array }> {
  const { primitives, store, clock } = parts;
  const own = await parts.own.registered();
  const list = await currentUnder(parts, operation, own.rootKey.publicKey);
  const next = createRootKey(primitives);
  const staying = list.devices.filter(
    ({ deviceId, revokedAt }) =>
      revokedAt === undefined && (keep === undefined || keep.includes(deviceId) || deviceId === own.deviceId),
  );
  const request = create(ChangeRootKeyRequestSchema, {
    requestId: randomUuid(primitives),
    rootKeyChange: rootKeyChange(parts, list, next, own.rootKey),
    certifiedDevices: staying.map((device) => ({
      deviceId: device.deviceId,
      certificate: certifyDevice(primitives, next, device, clock.now()),
    })),
  });
  // Before it is sent: if the answer never comes, the only copy of the new root key is here.
  const content = toBinary(ChangeRootKeyRequestSchema, request);
  await store.savePending(changeName, { content, secret: next.privateKey });
  return { request, privateKey: next.privateKey };
}

async function adopt(
  { own, store, rootKeys }: RegistrationParts,
  rootKey: KeyPair,
  { certifiedDevices }: ChangeRootKeyRequest,
): Promise<void> {
  const certificate = certifiedDevices.find(({ deviceId }) => deviceId === own.deviceId)?.certificate;
  if (certificate === undefined) throw new Error('the change leaves this device out');
  await rootKeys.accept(own.userId, rootKey.publicKey);
  await own.change((device) => ({ ...device, rootKey, certificate: toBinary(DeviceCertificateSchema, certificate) }));
  await store.removePending(changeName);
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
    try {
      await upload(parts, operation, device, change);
    } catch (error) {
      if (isDecided(error)) await store.saveDevice(made);
      throw error;
    }
    await directory.current(operation, [own.userId]);
  });
}

function rootKeyChange(
  { primitives }: RegistrationParts,
  { userId, rootKey, version }: DeviceList,
  next: KeyPair,
  previous?: KeyPair,
): RootKeyChange {
  const said = { previousRootKey: rootKey, newRootKey: next.publicKey, deviceListVersion: version };
  const text = rootKeyChangeText(userId, said);
  return create(RootKeyChangeSchema, {
    ...said,
    newSignature: primitives.ed25519.sign(next.privateKey, text),
    ...(previous && { previousSignature: primitives.ed25519.sign(previous.privateKey, text) }),
  });
}

async function onceMoreOnConflict<T>(work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    if (!(error instanceof RefusalError) || error.reason !== 'DEVICE_LIST_CONFLICT') throw error;
    return work();
  }
}

/**
 * The safety number with a user, of the root keys that this device trusts for both.
 *
 * @throws RootKeyUnknownError, DeviceListRefusedError, RefusalError.
 */
export async function safetyNumberWith(
  { own, rootKeys, directory }: RegistrationParts,
  operation: Operation,
  userId: string,
): Promise<SafetyNumber> {
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
