import { toBinary } from '@bufbuild/protobuf';
import { type DeviceCertificate, DeviceCertificateSchema, type DeviceList } from '@keytrail/contracts';
import {
  certifyDevice,
  type KeyPair,
  linkCode,
  openSealedRootKey,
  sameLinkCode,
  sealRootKeyToDevice,
  verifyDeviceCertificate,
} from '@keytrail/crypto';
import { equalBytes } from './bytes.ts';
import { LinkCodeMismatchError, NotRegisteredError, RootKeyNotCurrentError } from './errors.ts';
import type { StoredDevice, StoredPrekey } from './key-store.ts';
import { approvalText, LinkTextError, linkRequestText, parseApproval, parseLinkRequest } from './link-text.ts';
import { signPrekey } from './own-prekeys.ts';
import { publicKeys, type RegistrationParts, storedOrMade, upload } from './registration.ts';
import type { Operation } from './tracing.ts';

/**
 * Text for the device that is to approve this one. Making it again shows the same, until it was answered or its prekey, which was rotated
 * meanwhile, is gone.
 */
export async function makeLinkRequest(parts: RegistrationParts): Promise<string> {
  const { primitives, store, own } = parts;
  const made = await storedOrMade(parts);
  const shown = made.linkSecret && (await linkPrekey(parts, made));
  const device = shown
    ? made
    : await own.change((stored) => ({
        ...stored,
        linkSecret: primitives.randomBytes(32),
        linkPrekeyId: stored.lastResortPrekeyId,
      }));
  const kemPrekey = shown ?? (await store.prekey('kem-last-resort', device.lastResortPrekeyId));
  if (kemPrekey === undefined) throw new Error('the key store has lost the last-resort prekey');
  return linkRequestText({
    ...publicKeys(device),
    kemPrekey: signPrekey(primitives, device, 'kem-last-resort', kemPrekey),
    linkSecret: device.linkSecret ?? new Uint8Array(),
  });
}

function linkPrekey(
  { store }: RegistrationParts,
  { linkPrekeyId, lastResortPrekeyId }: StoredDevice,
): Promise<StoredPrekey | undefined> {
  return store.prekey('kem-last-resort', linkPrekeyId ?? lastResortPrekeyId);
}

/** The code of a link request, to be compared by a person: 12 digits. @throws LinkTextError. */
export async function linkCodeOf({ primitives }: RegistrationParts, link: string): Promise<string> {
  return linkCode(primitives, parseLinkRequest(link));
}

/**
 * Certifies the device that a link request names, and seals the user's root key to it, if the code is the one that the person read there.
 *
 * @throws LinkTextError, LinkCodeMismatchError, RecipientError, SealedRootKeyError (`recipient`: another user's).
 */
export async function approveLink(parts: RegistrationParts, link: string, code: string): Promise<string> {
  const { primitives, clock } = parts;
  const own = await parts.own.registered();
  const request = parseLinkRequest(link);
  if (!sameLinkCode(await linkCode(primitives, request), code)) throw new LinkCodeMismatchError();
  const sealedRootKey = sealRootKeyToDevice(primitives, { rootKey: own.rootKey, approver: own, request });
  const certificate = certifyDevice(primitives, own.rootKey, request, clock.now());
  return approvalText({ sealedRootKey, certificate });
}

/**
 * Registers this device with the approval of another one of the same user. A device that is registered already takes over a new root key of
 * the user so.
 *
 * @throws LinkTextError, SealedRootKeyError, CertificateError, RootKeyNotCurrentError, DeviceListRefusedError, RefusalError.
 */
export async function acceptApproval(parts: RegistrationParts, operation: Operation, approval: string): Promise<void> {
  const { primitives, store } = parts;
  const made = await parts.own.stored();
  if (made?.linkSecret === undefined) {
    if (made?.state === 'registered') return;
    throw new LinkTextError('this device has shown no link request');
  }
  const { sealedRootKey, certificate } = parseApproval(approval);
  const kemPrekey = await linkPrekey(parts, made);
  if (kemPrekey === undefined) throw new LinkTextError('the prekey of the link request is gone: show a new one');
  const { rootKey } = openSealedRootKey(primitives, {
    sealed: sealedRootKey,
    device: { ...made, signingKey: made.signingKey.publicKey, kemPrekey, linkSecret: made.linkSecret },
  });
  verifyDeviceCertificate(primitives, publicKeys(made), certificate, rootKey.publicKey);
  const list = await currentUnder(parts, operation, rootKey.publicKey);
  if (made.state === 'registered') await takeOver(parts, made, rootKey, list);
  else {
    const device = { ...made, rootKey, certificate: toBinary(DeviceCertificateSchema, certificate) };
    await store.saveDevice(device);
    await upload(parts, operation, device);
  }
}

/**
 * The own user's verified device list, which must be under this root key: who offers another one is wrong, or late.
 *
 * @throws RootKeyNotCurrentError, DeviceListRefusedError, RefusalError.
 */
export async function currentUnder(
  { directory, own }: RegistrationParts,
  operation: Operation,
  rootKey: Uint8Array,
): Promise<DeviceList> {
  const [list] = await directory.current(operation, [own.userId]);
  // Where there is no log, nothing says that the root key is this one but the server.
  if (list === undefined || list.version === 0n || !equalBytes(list.rootKey, rootKey)) {
    throw new RootKeyNotCurrentError();
  }
  return list;
}

/**
 * Takes over a root key that the user has by now, with the certificate by it that the user's verified list has for this device.
 *
 * @throws NotRegisteredError (the list has this device no more), CertificateError.
 */
export async function takeOver(
  { rootKeys, own, primitives }: RegistrationParts,
  device: StoredDevice,
  rootKey: KeyPair,
  list: DeviceList,
): Promise<void> {
  const listed = list.devices.find(({ deviceId, revokedAt }) => deviceId === device.deviceId && !revokedAt);
  const certificate: DeviceCertificate | undefined = listed?.certificate;
  if (certificate === undefined) throw new NotRegisteredError();
  verifyDeviceCertificate(primitives, publicKeys(device), certificate, rootKey.publicKey);
  await rootKeys.accept(own.userId, rootKey.publicKey);
  await own.change(({ linkSecret: _, linkPrekeyId: __, ...stored }) => ({
    ...stored,
    rootKey,
    certificate: toBinary(DeviceCertificateSchema, certificate),
  }));
}
