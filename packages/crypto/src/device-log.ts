import type { DeviceLogEntry, RootKeyChange } from '@keytrail/contracts';
import { sha256 } from '@noble/hashes/sha2.js';
import { certifiedAtMs, type DeviceKeys } from './certificate.ts';
import { suite } from './primitives.ts';
import type { Statement } from './statement.ts';
import { transcript } from './transcript.ts';

const none = new Uint8Array();

/** What the first entry of a log has for its previous hash. */
export const noPreviousHash: Uint8Array = new Uint8Array(32);

/** What is hashed for an entry of a user's device log. A part that the entry's kind does not have is empty, or 0. */
export function deviceLogEntryText(userId: string, entry: Omit<DeviceLogEntry, 'hash' | '$typeName'>): Uint8Array {
  const { certificate, revocation, rootKeyChange } = entry;
  return transcript(
    'keytrail/v1/device-log-entry',
    entry.previousHash,
    userId,
    entry.version,
    entry.kind,
    millisecondsOf(entry.recordedAt),
    entry.rootKey,
    entry.deviceId,
    entry.identityKey,
    entry.signingKey,
    (certificate && certifiedAtMs(certificate)) ?? 0n,
    certificate?.signature ?? none,
    revocation?.by ?? 0,
    revocation?.revokingDeviceId ?? '',
    millisecondsOf(revocation?.signedAt),
    revocation?.signature ?? none,
    rootKeyChange?.previousRootKey ?? none,
    rootKeyChange?.deviceListVersion ?? 0n,
    rootKeyChange?.previousSignature ?? none,
    rootKeyChange?.newSignature ?? none,
  );
}

/** The hash of an entry: 32 bytes. */
export function deviceLogEntryHash(userId: string, entry: Omit<DeviceLogEntry, 'hash' | '$typeName'>): Uint8Array {
  return sha256(deviceLogEntryText(userId, entry));
}

/** What a root key signs to revoke a device; `revokedAtMs` since 1970, by the signer's clock. */
export function deviceRevocationText(device: DeviceKeys, revokedAtMs: bigint): Uint8Array {
  const { userId, deviceId, identityKey, signingKey } = device;
  return transcript('keytrail/v1/device-revocation', suite, userId, deviceId, identityKey, signingKey, revokedAtMs);
}

export function deviceRevocationStatement(
  device: DeviceKeys,
  { rootKey, revokedAtMs, signature }: { rootKey: Uint8Array; revokedAtMs: bigint; signature: Uint8Array },
): Statement {
  return { publicKey: rootKey, text: deviceRevocationText(device, revokedAtMs), signature };
}

/** What both root keys sign when one replaces the other. */
export function rootKeyChangeText(
  userId: string,
  change: Pick<RootKeyChange, 'previousRootKey' | 'newRootKey' | 'deviceListVersion'>,
): Uint8Array {
  const { previousRootKey, newRootKey, deviceListVersion } = change;
  return transcript('keytrail/v1/root-key-change', suite, userId, previousRootKey, newRootKey, deviceListVersion);
}

/** The signatures of a change that must verify: the new root key's, and the previous one's unless the change is a reset. */
export function rootKeyChangeStatements(userId: string, change: RootKeyChange): Statement[] {
  const text = rootKeyChangeText(userId, change);
  const byNew = { publicKey: change.newRootKey, text, signature: change.newSignature };
  if (change.previousSignature.length === 0) return [byNew];
  return [byNew, { publicKey: change.previousRootKey, text, signature: change.previousSignature }];
}

function millisecondsOf(at: { seconds: bigint; nanos: number } | undefined): bigint {
  return at === undefined ? 0n : at.seconds * 1000n + BigInt(Math.trunc(at.nanos / 1_000_000));
}
