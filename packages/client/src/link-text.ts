import { create } from '@bufbuild/protobuf';
import { timestampFromMs } from '@bufbuild/protobuf/wkt';
import { type DeviceCertificate, DeviceCertificateSchema } from '@keytrail/contracts';
import { certifiedAtMs, decodeParts, type LinkRequest, suite, transcript } from '@keytrail/crypto';
import { fromBase64Url, toBase64Url } from './bytes.ts';

/** The text of a link or an approval is not one, or is damaged. */
export class LinkTextError extends Error {
  override readonly name = 'LinkTextError';
}

const requestPrefix = 'keytrail-link:';
const approvalPrefix = 'keytrail-approval:';
const requestDomain = 'keytrail/client/link-request';
const approvalDomain = 'keytrail/client/approval';

/** About 2000 characters of base64url: a QR code of version 30 or above. */
export function linkRequestText(request: LinkRequest): string {
  const { userId, deviceId, identityKey, signingKey, kemPrekey, linkSecret } = request;
  const { keyId, publicKey, signature } = kemPrekey;
  const parts = [userId, deviceId, identityKey, signingKey, keyId, publicKey, signature, linkSecret];
  return requestPrefix + toBase64Url(transcript(requestDomain, ...parts));
}

/** @throws LinkTextError. */
export function parseLinkRequest(text: string): LinkRequest {
  const [userId, deviceId, identityKey, signingKey, keyId, publicKey, signature, linkSecret] = partsOf(
    text,
    requestPrefix,
    requestDomain,
    [-1, -1, 32, 32, 8, 1184, 64, 32],
  );
  return {
    userId: utf8(userId),
    deviceId: utf8(deviceId),
    identityKey: present(identityKey),
    signingKey: present(signingKey),
    kemPrekey: { keyId: Number(integer(keyId)), publicKey: present(publicKey), signature: present(signature) },
    linkSecret: present(linkSecret),
  };
}

/** What an approving device sends back. */
export interface Approval {
  readonly sealedRootKey: Uint8Array;
  /** The root key's statement about the new device. */
  readonly certificate: DeviceCertificate;
}

export function approvalText({ sealedRootKey, certificate }: Approval): string {
  const { rootKey, signature } = certificate;
  const parts = [sealedRootKey, rootKey, certifiedAtMs(certificate) ?? 0n, signature];
  return approvalPrefix + toBase64Url(transcript(approvalDomain, ...parts));
}

/** @throws LinkTextError. */
export function parseApproval(text: string): Approval {
  const lengths = [-1, 32, 8, 64];
  const [sealedRootKey, rootKey, certifiedAt, signature] = partsOf(text, approvalPrefix, approvalDomain, lengths);
  const certificate = create(DeviceCertificateSchema, {
    rootKey: present(rootKey),
    suite,
    certifiedAt: timestampFromMs(Number(integer(certifiedAt))),
    signature: present(signature),
  });
  return { sealedRootKey: present(sealedRootKey), certificate };
}

function partsOf(text: string, prefix: string, domain: string, lengths: readonly number[]): Uint8Array[] {
  const trimmed = text.trim();
  const bytes = trimmed.startsWith(prefix) ? fromBase64Url(trimmed.slice(prefix.length)) : undefined;
  const [named, ...parts] = (bytes && decodeParts(bytes)) ?? [];
  const fits =
    parts.length === lengths.length && parts.every(({ length }, i) => [-1, length].includes(lengths[i] ?? 0));
  if (named === undefined || utf8(named) !== domain || !fits) throw new LinkTextError(`this is no ${prefix} text`);
  return parts;
}

function present(part: Uint8Array | undefined): Uint8Array {
  if (part === undefined) throw new LinkTextError('a part is missing');
  return part;
}

function utf8(part: Uint8Array | undefined): string {
  return new TextDecoder().decode(present(part));
}

function integer(part: Uint8Array | undefined): bigint {
  const bytes = present(part);
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength).getBigUint64(0);
}
