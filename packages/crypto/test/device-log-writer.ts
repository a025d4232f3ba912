import { create } from '@bufbuild/protobuf';
import { type Timestamp, timestampFromMs } from '@bufbuild/protobuf/wkt';
import {
  type DeviceCertificate,
  type DeviceLogEntry,
  DeviceLogEntrySchema,
  DeviceLogKind,
  type DeviceRevocation,
  RevokedBy,
  type RootKeyChange,
  RootKeyChangeSchema,
} from '@keytrail/contracts';
import {
  type DeviceKeys,
  deviceLogEntryHash,
  deviceRevocationText,
  type KeyPair,
  noPreviousHash,
  type Primitives,
  rootKeyChangeText,
} from '@keytrail/crypto';

type Certified = DeviceKeys & { readonly certificate?: DeviceCertificate | undefined };

/** Writes a user's device log as a service does, believing what it is told. */
export class DeviceLogWriter {
  readonly entries: DeviceLogEntry[] = [];
  readonly #userId: string;
  #ms = 1_767_323_045_678;

  constructor(userId: string) {
    this.#userId = userId;
  }

  get version(): bigint {
    return BigInt(this.entries.length);
  }

  get head(): Uint8Array {
    return this.entries.at(-1)?.hash ?? noPreviousHash;
  }

  get rootKey(): Uint8Array {
    return this.entries.at(-1)?.rootKey ?? new Uint8Array();
  }

  added({ deviceId, identityKey, signingKey, certificate }: Certified): void {
    this.write({
      kind: DeviceLogKind.DEVICE_ADDED,
      rootKey: certificate?.rootKey ?? new Uint8Array(),
      deviceId,
      identityKey,
      signingKey,
      ...(certificate && { certificate }),
    });
  }

  recertified({ deviceId, identityKey, signingKey, certificate }: Certified): void {
    const kind = DeviceLogKind.DEVICE_RECERTIFIED;
    this.write({ kind, deviceId, identityKey, signingKey, ...(certificate && { certificate }) });
  }

  revoked({ deviceId, identityKey, signingKey }: DeviceKeys, revocation: Omit<DeviceRevocation, '$typeName'>): void {
    this.write({
      kind: DeviceLogKind.DEVICE_REVOKED,
      deviceId,
      identityKey,
      signingKey,
      revocation: { $typeName: 'keytrail.identitykeys.v1.DeviceRevocation', ...revocation },
    });
  }

  rootKeyChanged(rootKeyChange: RootKeyChange): void {
    this.write({ kind: DeviceLogKind.ROOT_KEY_CHANGED, rootKey: rootKeyChange.newRootKey, rootKeyChange });
  }

  /** An entry with the right place and hash, whatever else it says. */
  write(entry: Partial<Omit<DeviceLogEntry, '$typeName'>>): void {
    this.#ms += 1000;
    const whole = create(DeviceLogEntrySchema, {
      rootKey: this.rootKey,
      recordedAt: timestampFromMs(this.#ms),
      version: this.version + 1n,
      previousHash: this.head,
      ...entry,
    });
    this.entries.push(create(DeviceLogEntrySchema, { ...whole, hash: deviceLogEntryHash(this.#userId, whole) }));
  }
}

export function signedRevocation(
  primitives: Primitives,
  rootKey: KeyPair,
  device: DeviceKeys,
  revokingDeviceId: string,
  ms = 1_767_323_999_000,
): { by: RevokedBy; revokingDeviceId: string; signedAt: Timestamp; signature: Uint8Array } {
  const signature = primitives.ed25519.sign(rootKey.privateKey, deviceRevocationText(device, BigInt(ms)));
  return { by: RevokedBy.USER_DEVICE, revokingDeviceId, signedAt: timestampFromMs(ms), signature };
}

export function unsignedRevocation(by: RevokedBy): { by: RevokedBy; revokingDeviceId: string; signature: Uint8Array } {
  return { by, revokingDeviceId: '', signature: new Uint8Array() };
}

/** A change of the root key; without the previous private key it is a reset. */
export function rootKeyChange(
  primitives: Primitives,
  userId: string,
  change: { previous: Pick<KeyPair, 'publicKey'> & Partial<KeyPair>; next: KeyPair; deviceListVersion: bigint },
): RootKeyChange {
  const { previous, next, deviceListVersion } = change;
  const said = { previousRootKey: previous.publicKey, newRootKey: next.publicKey, deviceListVersion };
  const text = rootKeyChangeText(userId, said);
  return create(RootKeyChangeSchema, {
    ...said,
    previousSignature: previous.privateKey ? primitives.ed25519.sign(previous.privateKey, text) : new Uint8Array(),
    newSignature: primitives.ed25519.sign(next.privateKey, text),
  });
}
