import { create } from '@bufbuild/protobuf';
import { timestampFromMs } from '@bufbuild/protobuf/wkt';
import { type DeviceCertificate, DeviceCertificateSchema } from '@keytrail/contracts';
import { equalBytes } from './bytes.ts';
import type { Ref } from './hashes.ts';
import { type KeyPair, lengths, type Primitives, suite } from './primitives.ts';
import { CertificateError } from './problems.ts';
import { type Statement, verifyStatement } from './statement.ts';
import { transcript } from './transcript.ts';

/** A device and its two long-term public keys. */
export interface DeviceKeys extends Ref {
  /** 32 bytes, X25519. */
  readonly identityKey: Uint8Array;
  /** 32 bytes, Ed25519. */
  readonly signingKey: Uint8Array;
}

/** The text that a root key signs; `certifiedAtMs` since 1970. */
export function deviceCertificateText(device: DeviceKeys, certifiedAtMs: bigint): Uint8Array {
  const { userId, deviceId, identityKey, signingKey } = device;
  return transcript('keytrail/v1/device-certificate', suite, userId, deviceId, identityKey, signingKey, certifiedAtMs);
}

/** certified_at in milliseconds since 1970; undefined when it is absent, before 1970 or finer than that, for only this much is signed. */
export function certifiedAtMs(certificate: DeviceCertificate): bigint | undefined {
  const at = certificate.certifiedAt;
  if (at === undefined || at.seconds < 0n || at.nanos < 0 || at.nanos % 1_000_000 !== 0) return undefined;
  return at.seconds * 1000n + BigInt(at.nanos / 1_000_000);
}

/**
 * What a certificate says, ready to be verified under its own root key. Whether that is the user's root key is another question.
 *
 * @throws CertificateError (`malformed`, `suite`, `time`).
 */
export function deviceCertificateStatement(device: DeviceKeys, certificate: DeviceCertificate | undefined): Statement {
  if (certificate === undefined) throw new CertificateError('malformed', 'absent');
  if (certificate.suite !== suite) throw new CertificateError('suite', String(certificate.suite));
  if (certificate.rootKey.length !== lengths.ed25519Key) throw new CertificateError('malformed', 'root_key');
  const at = certifiedAtMs(certificate);
  if (at === undefined) throw new CertificateError('time');
  return {
    publicKey: certificate.rootKey,
    text: deviceCertificateText(device, at),
    signature: certificate.signature,
  };
}

/**
 * Verifies that `rootKey` (32 bytes, Ed25519: the pinned one, or the one stored for the user) certifies the device and its keys.
 *
 * @throws CertificateError.
 */
export function verifyDeviceCertificate(
  primitives: Primitives,
  device: DeviceKeys,
  certificate: DeviceCertificate | undefined,
  rootKey: Uint8Array,
): asserts certificate is DeviceCertificate {
  const statement = deviceCertificateStatement(device, certificate);
  if (!equalBytes(statement.publicKey, rootKey)) throw new CertificateError('root-key');
  if (!verifyStatement(primitives, statement)) throw new CertificateError('signature');
}

/** Makes a user's root key: Ed25519. The first device does this once per user. */
export function createRootKey(primitives: Primitives): KeyPair {
  return primitives.ed25519.keyPair();
}

/** The root key's statement that the device belongs to the user. `certifiedAt` is by the signer's clock. */
export function certifyDevice(
  primitives: Primitives,
  rootKey: KeyPair,
  device: DeviceKeys,
  certifiedAt: Date,
): DeviceCertificate {
  const ms = certifiedAt.getTime();
  return create(DeviceCertificateSchema, {
    rootKey: rootKey.publicKey,
    suite,
    certifiedAt: timestampFromMs(ms),
    signature: primitives.ed25519.sign(rootKey.privateKey, deviceCertificateText(device, BigInt(ms))),
  });
}
