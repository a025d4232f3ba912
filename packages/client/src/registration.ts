import { create, fromBinary, toBinary } from '@bufbuild/protobuf';
import { DeviceCertificateSchema, type RegisterDeviceRequest, RegisterDeviceRequestSchema } from '@keytrail/contracts';
import {
  CertificateError,
  certifyDevice,
  createRootKey,
  openSealedRootKey,
  type Primitives,
  sealRootKeyToDevice,
  verifyDeviceCertificate,
} from '@keytrail/crypto';
import { equalBytes, randomUuid } from './bytes.ts';
import type { Calls } from './calls.ts';
import type { Clock } from './clock.ts';
import { isDecided, NotRegisteredError } from './errors.ts';
import type { KeyStore, StoredDevice } from './key-store.ts';
import { approvalText, LinkTextError, linkRequestText, parseApproval, parseLinkRequest } from './link-text.ts';
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
  const device = made.rootKey === undefined ? withOwnRootKey(parts, made) : made;
  await parts.store.saveDevice(device);
  try {
    await upload(parts, operation, device);
  } catch (error) {
    // The root key is of no use then; another device may still approve this one.
    if (isDecided(error)) await parts.store.saveDevice(made);
    throw error;
  }
}

function withOwnRootKey({ primitives, clock }: RegistrationParts, device: StoredDevice): StoredDevice {
  const rootKey = createRootKey(primitives);
  const certificate = certifyDevice(primitives, rootKey, publicKeys(device), clock.now());
  return { ...device, rootKey, certificate: toBinary(DeviceCertificateSchema, certificate) };
}

/** Text for the device that is to approve this one. Making it again shows the same. */
export async function makeLinkRequest(parts: RegistrationParts): Promise<string> {
  const made = await storedOrMade(parts);
  const device = made.linkSecret === undefined ? { ...made, linkSecret: parts.primitives.randomBytes(32) } : made;
  await parts.store.saveDevice(device);
  const kemPrekey = await parts.store.prekey('kem-last-resort', device.lastResortPrekeyId);
  if (kemPrekey === undefined) throw new Error('the key store has lost the last-resort prekey');
  const linkSecret = device.linkSecret ?? new Uint8Array();
  return linkRequestText({
    ...publicKeys(device),
    kemPrekey: signPrekey(parts.primitives, device, 'kem-last-resort', kemPrekey),
    linkSecret,
  });
}

/**
 * Certifies the device that a link request names, and seals the user's root key to it.
 *
 * @throws LinkTextError, RecipientError, SealedRootKeyError (`recipient`: another user's).
 */
export async function approveLink(parts: RegistrationParts, link: string): Promise<string> {
  const { primitives, clock } = parts;
  const own = await parts.own.registered();
  const request = parseLinkRequest(link);
  const sealedRootKey = sealRootKeyToDevice(primitives, { rootKey: own.rootKey, approver: own, request });
  const certificate = certifyDevice(primitives, own.rootKey, request, clock.now());
  return approvalText({ sealedRootKey, certificate });
}

/**
 * Registers this device with the approval of another one of the same user.
 *
 * @throws LinkTextError, SealedRootKeyError, CertificateError, RefusalError.
 */
export async function registerApprovedDevice(
  parts: RegistrationParts,
  operation: Operation,
  approval: string,
): Promise<void> {
  const { primitives, store } = parts;
  const made = await parts.own.stored();
  if (made?.state === 'registered') return;
  if (made?.linkSecret === undefined) throw new LinkTextError('this device has shown no link request');
  const { sealedRootKey, certificate } = parseApproval(approval);
  const kemPrekey = await store.prekey('kem-last-resort', made.lastResortPrekeyId);
  if (kemPrekey === undefined) throw new Error('the key store has lost the last-resort prekey');
  const { rootKey } = openSealedRootKey(primitives, {
    sealed: sealedRootKey,
    device: { ...made, signingKey: made.signingKey.publicKey, kemPrekey, linkSecret: made.linkSecret },
  });
  if (!equalBytes(certificate.rootKey, rootKey.publicKey)) throw new CertificateError('root-key');
  verifyDeviceCertificate(primitives, publicKeys(made), certificate, rootKey.publicKey);
  const device = { ...made, rootKey, certificate: toBinary(DeviceCertificateSchema, certificate) };
  await store.saveDevice(device);
  await upload(parts, operation, device);
}

async function storedOrMade(parts: RegistrationParts): Promise<StoredDevice> {
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

/** Sends the whole key set: the same one again when an earlier try was not answered. */
async function upload(parts: RegistrationParts, operation: Operation, device: StoredDevice): Promise<void> {
  const { calls, store, rootKeys } = parts;
  const { rootKey } = device;
  if (rootKey === undefined) throw new NotRegisteredError();
  const pending = await store.pending(pendingName);
  const request = pending
    ? fromBinary(RegisterDeviceRequestSchema, pending.content)
    : await keySet(parts, device, certificateOf(device));
  if (!pending) await store.savePending(pendingName, { content: toBinary(RegisterDeviceRequestSchema, request) });
  try {
    await calls.call(operation, (options) => calls.identityKeys.registerDevice(request, options));
  } catch (error) {
    if (isDecided(error)) await store.removePending(pendingName);
    throw error;
  }
  await rootKeys.accept(device.userId, rootKey.publicKey);
  const { linkSecret: _, ...registered } = device;
  await store.saveDevice({ ...registered, state: 'registered' });
  await store.removePending(pendingName);
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

function publicKeys({ userId, deviceId, identityKey, signingKey }: StoredDevice) {
  return { userId, deviceId, identityKey: identityKey.publicKey, signingKey: signingKey.publicKey };
}
