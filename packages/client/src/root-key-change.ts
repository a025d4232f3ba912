import { create, fromBinary, toBinary } from '@bufbuild/protobuf';
import {
  type ChangeRootKeyRequest,
  ChangeRootKeyRequestSchema,
  type ChangeRootKeyResponse,
  DeviceCertificateSchema,
  type DeviceList,
  type RootKeyChange,
  RootKeyChangeSchema,
} from '@keytrail/contracts';
import { certifyDevice, createRootKey, type KeyPair, rootKeyChangeText } from '@keytrail/crypto';
import { equalBytes, randomUuid } from './bytes.ts';
import { isDecided, RefusalError, UnknownDevicesError } from './errors.ts';
import type { KeyStore } from './key-store.ts';
import { currentUnder, takeOver } from './linking.ts';
import type { RegistrationParts } from './registration.ts';
import type { Operation } from './tracing.ts';

export interface ChangedRootKey {
  /** 32 bytes, Ed25519. */
  readonly rootKey: Uint8Array;
  /** Devices that were left out. */
  readonly revoked: readonly string[];
}

/** A change on its way; once refused, without a request id. If its answer never comes, the only copy of the new root key is this. */
interface Change {
  readonly request: ChangeRootKeyRequest & { readonly rootKeyChange: RootKeyChange };
  readonly rootKey: KeyPair;
}

const changeName = 'change root key';

/**
 * Gives the user another root key, signed for by the present one. Devices in `keep` (all, when left out; this one always) are certified by the new
 * root key and are to be linked again, the rest are revoked. The recovery is removed. A change that was not answered is completed first; where it
 * kept devices that `keep` leaves out, another one follows.
 *
 * @throws UnknownDevicesError (`keep` names what is no good device of the user), RootKeyNotCurrentError, DeviceListRefusedError, RefusalError
 *   (`DEVICE_LIST_CONFLICT`: the list changed twice meanwhile).
 */
export async function changeRootKey(
  parts: RegistrationParts,
  operation: Operation,
  keep?: readonly string[],
): Promise<ChangedRootKey> {
  const completed = await completePending(parts, operation);
  if (completed && (await leavesOutAllBut(parts, operation, keep))) return completed;
  const changed = await onceMoreOnConflict(async () => send(parts, operation, await prepare(parts, operation, keep)));
  return { ...changed, revoked: [...(completed?.revoked ?? []), ...changed.revoked] };
}

/** The new root key of a change that was sent and not answered. */
export async function pendingRootKey(store: KeyStore): Promise<Uint8Array | undefined> {
  return (await pendingChange(store))?.rootKey.publicKey;
}

/** Undefined when there is none, or when it was not made. */
async function completePending(parts: RegistrationParts, operation: Operation): Promise<ChangedRootKey | undefined> {
  const pending = await pendingChange(parts.store);
  if (pending === undefined) return undefined;
  if (pending.request.requestId === '') return findInLog(parts, operation, pending);
  try {
    return await send(parts, operation, pending);
  } catch (error) {
    if (!isDecided(error)) throw error;
    return undefined;
  }
}

async function leavesOutAllBut(
  parts: RegistrationParts,
  operation: Operation,
  keep: readonly string[] | undefined,
): Promise<boolean> {
  if (keep === undefined) return true;
  const { rootKey } = await parts.own.registered();
  const good = goodDevices(await currentUnder(parts, operation, rootKey.publicKey));
  refuseUnknown(good, keep);
  return good.every(({ deviceId }) => keep.includes(deviceId) || deviceId === parts.own.deviceId);
}

async function send(
  parts: RegistrationParts,
  operation: Operation,
  { request, rootKey }: Change,
): Promise<ChangedRootKey> {
  const { calls, own, store, rootKeys, directory } = parts;
  let answer: ChangeRootKeyResponse;
  try {
    answer = await calls.call(operation, (options) => calls.identityKeys.changeRootKey(request, options));
  } catch (error) {
    const found = isDecided(error)
      ? await findInLog(parts, operation, { request, rootKey }).catch(() => {})
      : undefined;
    if (found) return found;
    throw error;
  }
  const certificate = request.certifiedDevices.find(({ deviceId }) => deviceId === own.deviceId)?.certificate;
  if (certificate === undefined) throw new Error('the change leaves this device out');
  await rootKeys.accept(own.userId, rootKey.publicKey);
  await own.change((device) => ({ ...device, rootKey, certificate: toBinary(DeviceCertificateSchema, certificate) }));
  await store.removePending(changeName);
  await directory.current(operation, [own.userId]);
  return { rootKey: rootKey.publicKey, revoked: answer.revokedDeviceIds };
}

/**
 * Looks whether a change that is refused now was made before: then it is taken over. The new root key is forgotten only when the log has gone
 * another way. Until then the service could still make the change, which is signed for: the key is kept for the next one.
 */
async function findInLog(
  parts: RegistrationParts,
  operation: Operation,
  { request, rootKey }: Change,
): Promise<ChangedRootKey | undefined> {
  const { own, store, directory, logs } = parts;
  const [list] = await directory.current(operation, [own.userId]);
  const { version, devices } = await logs.remembered(own.userId);
  const signedFor = request.rootKeyChange.deviceListVersion;
  const device = await own.stored();
  if (device && list && list.version > 0n && equalBytes(list.rootKey, rootKey.publicKey)) {
    await takeOver(parts, device, rootKey, list);
    await store.removePending(changeName);
    const revoked = devices.filter(({ revokedInVersion }) => (revokedInVersion ?? 0n) > signedFor);
    return { rootKey: rootKey.publicKey, revoked: revoked.map(({ deviceId }) => deviceId) };
  }
  if (version > signedFor) await store.removePending(changeName);
  else {
    const content = toBinary(ChangeRootKeyRequestSchema, { ...request, requestId: '' });
    await store.savePending(changeName, { content, secret: rootKey.privateKey });
  }
  return undefined;
}

async function pendingChange(store: KeyStore): Promise<Change | undefined> {
  const pending = await store.pending(changeName);
  if (!pending?.secret) return undefined;
  const request = fromBinary(ChangeRootKeyRequestSchema, pending.content);
  const { rootKeyChange } = request;
  if (rootKeyChange === undefined) return undefined;
  const rootKey = { publicKey: rootKeyChange.newRootKey, privateKey: pending.secret };
  return { request: { ...request, rootKeyChange }, rootKey };
}

async function prepare(
  parts: RegistrationParts,
  operation: Operation,
  keep: readonly string[] | undefined,
): Promise<Change> {
  const { primitives, store, clock } = parts;
  const own = await parts.own.registered();
  const list = await currentUnder(parts, operation, own.rootKey.publicKey);
  const good = goodDevices(list);
  refuseUnknown(good, keep ?? []);
  const kept = (await store.pending(changeName))?.secret;
  const next = kept ? { publicKey: primitives.ed25519.publicKey(kept), privateKey: kept } : createRootKey(primitives);
  const staying = good.filter(
    ({ deviceId }) => keep === undefined || keep.includes(deviceId) || deviceId === own.deviceId,
  );
  const change = rootKeyChange(parts, list, next, own.rootKey);
  const request = create(ChangeRootKeyRequestSchema, {
    requestId: randomUuid(primitives),
    rootKeyChange: change,
    certifiedDevices: staying.map((device) => ({
      deviceId: device.deviceId,
      certificate: certifyDevice(primitives, next, device, clock.now()),
    })),
  });
  const content = toBinary(ChangeRootKeyRequestSchema, request);
  await store.savePending(changeName, { content, secret: next.privateKey });
  return { request: { ...request, rootKeyChange: change }, rootKey: next };
}

function goodDevices({ devices }: DeviceList): DeviceList['devices'] {
  return devices.filter(({ revokedAt }) => revokedAt === undefined);
}

function refuseUnknown(good: DeviceList['devices'], keep: readonly string[]): void {
  const unknown = keep.filter((id) => good.every(({ deviceId }) => deviceId !== id));
  if (unknown.length > 0) throw new UnknownDevicesError(unknown);
}

export function rootKeyChange(
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

export async function onceMoreOnConflict<T>(work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    if (!(error instanceof RefusalError) || error.reason !== 'DEVICE_LIST_CONFLICT') throw error;
    return work();
  }
}
