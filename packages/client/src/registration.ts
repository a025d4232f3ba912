import { create, fromBinary, toBinary } from '@bufbuild/protobuf';
import {
  DeviceCertificateSchema,
  type RegisterDeviceRequest,
  RegisterDeviceRequestSchema,
  type RegisterDeviceResponse,
  type RootKeyChange,
} from '@keytrail/contracts';
import { certifyDevice, createRootKey, type DeviceKeys, type KeyPair, type Primitives } from '@keytrail/crypto';
import { equalBytes, randomUuid } from './bytes.ts';
import type { Calls } from './calls.ts';
import type { Clock } from './clock.ts';
import type { DeviceLogs } from './device-logs.ts';
import type { Directory } from './directory.ts';
import { isDecided, NotRegisteredError } from './errors.ts';
import type { KeyStore, StoredDevice } from './key-store.ts';
import { certificateOf, type OwnDevice } from './own-device.ts';
import { makeOneTimePrekeys, reservePrekeyIds, signPrekey } from './own-prekeys.ts';
import type { RootKeys } from './root-keys.ts';
import type { Operation } from './tracing.ts';

export interface RegistrationParts {
  readonly calls: Calls;
  readonly primitives: Primitives;
  readonly store: KeyStore;
  readonly own: OwnDevice;
  readonly rootKeys: RootKeys;
  readonly logs: DeviceLogs;
  readonly directory: Directory;
  readonly clock: Clock;
  /** One-time prekeys of each kind. */
  readonly prekeys: number;
}

const pendingName = 'register';

/**
 * Registers the first device of a user: its root key is the user's. Says nothing when it is registered already.
 *
 * @throws RefusalError (`ROOT_KEY_MISMATCH`: the user has devices, one of them must approve this one).
 */
export async function registerFirstDevice(parts: RegistrationParts, operation: Operation): Promise<void> {
  const made = await storedOrMade(parts);
  if (made.state === 'registered') return;
  const rootKey = made.rootKey ?? createRootKey(parts.primitives);
  const device = made.rootKey === undefined ? certifiedBy(parts, made, rootKey) : made;
  await parts.store.saveDevice(device);
  // Refused, the root key is of no use; another device may still approve this one.
  await upload(parts, operation, device, { before: made });
}

/** The device as the root key certifies it. */
export function certifiedBy(
  { primitives, clock }: RegistrationParts,
  device: StoredDevice,
  rootKey: KeyPair,
): StoredDevice {
  const certificate = certifyDevice(primitives, rootKey, publicKeys(device), clock.now());
  return { ...device, rootKey, certificate: toBinary(DeviceCertificateSchema, certificate) };
}

/** This device with its keys, which are made when there are none. */
export async function storedOrMade(parts: RegistrationParts): Promise<StoredDevice> {
  const { own, primitives, store, clock } = parts;
  const stored = await own.stored();
  if (stored !== undefined) return stored;
  const madeAt = clock.now();
  const { userId, deviceId } = own;
  const [signedPrekeyId, lastResortPrekeyId] = await reservePrekeyIds(store, 2);
  if (signedPrekeyId === undefined || lastResortPrekeyId === undefined) throw new Error('no prekey ids');
  await store.savePrekeys([
    { kind: 'signed', keyId: signedPrekeyId, keyPair: primitives.x25519.keyPair(), madeAt },
    { kind: 'kem-last-resort', keyId: lastResortPrekeyId, keyPair: primitives.mlKem768.keyPair(), madeAt },
  ]);
  const device: StoredDevice = {
    userId,
    deviceId,
    state: 'made',
    identityKey: primitives.x25519.keyPair(),
    signingKey: primitives.ed25519.keyPair(),
    signedPrekeyId,
    lastResortPrekeyId,
  };
  await store.saveDevice(device);
  return device;
}

/**
 * Sends the whole key set: the same one again when an earlier try was not answered. `device` is stored already; `before` is what is stored again
 * when it is refused.
 */
export async function upload(
  parts: RegistrationParts,
  operation: Operation,
  device: StoredDevice,
  { rootKeyChange, before }: { rootKeyChange?: RootKeyChange | undefined; before?: StoredDevice } = {},
): Promise<void> {
  const { calls, store, own, rootKeys, logs } = parts;
  const { rootKey } = device;
  if (rootKey === undefined) throw new NotRegisteredError();
  const pending = await pendingUnder(parts, rootKey.publicKey);
  const request = pending ?? {
    ...(await keySet(parts, device, certificateOf(device))),
    ...(rootKeyChange && { rootKeyChange }),
  };
  if (!pending) await store.savePending(pendingName, { content: toBinary(RegisterDeviceRequestSchema, request) });
  let answer: RegisterDeviceResponse | undefined;
  try {
    answer = await calls.call(operation, (options) => calls.identityKeys.registerDevice(request, options));
  } catch (error) {
    if (!isDecided(error)) throw error;
    // An earlier try may have been accepted, and its request id be forgotten since: the log knows.
    const listed = await isListed(parts, operation, device).catch(() => undefined);
    if (listed === false) await giveUp(parts, device, before);
    if (listed !== true) throw error;
  }
  await rootKeys.accept(device.userId, rootKey.publicKey);
  const sent =
    request.certificate && toBinary(DeviceCertificateSchema, create(DeviceCertificateSchema, request.certificate));
  await own.change(({ linkSecret: _, linkPrekeyId: __, ...stored }) => ({
    ...stored,
    rootKey,
    // What was sent before may have another certificate than was made for this try.
    ...(sent && { certificate: sent }),
    state: 'registered',
  }));
  await store.removePending(pendingName);
  if (answer) await logs.told(device.userId, { version: answer.deviceListVersion, head: answer.logHead });
}

/** Whether the user's verified list has this device with these keys, under its root key. */
async function isListed(
  { directory }: RegistrationParts,
  operation: Operation,
  { userId, deviceId, rootKey, identityKey, signingKey }: StoredDevice,
): Promise<boolean> {
  const [list] = await directory.current(operation, [userId]);
  if (list === undefined || rootKey === undefined || !equalBytes(list.rootKey, rootKey.publicKey)) return false;
  const listed = list.devices.find((each) => each.deviceId === deviceId && each.revokedAt === undefined);
  if (listed === undefined || !equalBytes(listed.identityKey, identityKey.publicKey)) return false;
  return equalBytes(listed.signingKey, signingKey.publicKey);
}

async function giveUp(
  { store, own }: RegistrationParts,
  refused: StoredDevice,
  before: StoredDevice | undefined,
): Promise<void> {
  await store.removePending(pendingName);
  if (before === undefined) return;
  const root = refused.rootKey?.publicKey ?? new Uint8Array();
  // Only what this very call wrote is taken back.
  await own.change((stored) =>
    stored.state === 'made' && stored.rootKey && equalBytes(stored.rootKey.publicKey, root) ? before : stored,
  );
}

/** What was sent before under this root key. Under another one it is given up: that one did not become the user's here. */
export async function pendingUnder(
  { store }: RegistrationParts,
  rootKey: Uint8Array,
): Promise<RegisterDeviceRequest | undefined> {
  const pending = await store.pending(pendingName);
  if (pending === undefined) return undefined;
  const request = fromBinary(RegisterDeviceRequestSchema, pending.content);
  return request.certificate && equalBytes(request.certificate.rootKey, rootKey) ? request : undefined;
}

async function keySet(
  parts: RegistrationParts,
  device: StoredDevice,
  certificate: RegisterDeviceRequest['certificate'],
): Promise<RegisterDeviceRequest> {
  const { primitives, store } = parts;
  const [signedPrekey, lastResort] = await Promise.all([
    store.prekey('signed', device.signedPrekeyId),
    store.prekey('kem-last-resort', device.lastResortPrekeyId),
  ]);
  if (signedPrekey === undefined || lastResort === undefined || certificate === undefined) {
    throw new Error('the key store has lost keys of this device');
  }
  return create(RegisterDeviceRequestSchema, {
    requestId: randomUuid(primitives),
    identityKey: device.identityKey.publicKey,
    signingKey: device.signingKey.publicKey,
    certificate,
    signedPrekey: signPrekey(primitives, device, 'signed-prekey', signedPrekey),
    lastResortPrekey: signPrekey(primitives, device, 'kem-last-resort', lastResort),
    ...(await makeOneTimePrekeys(parts, device, { oneTime: parts.prekeys, kem: parts.prekeys })),
  });
}

export function publicKeys({ userId, deviceId, identityKey, signingKey }: StoredDevice): DeviceKeys {
  return { userId, deviceId, identityKey: identityKey.publicKey, signingKey: signingKey.publicKey };
}
