import {
  type DeviceList,
  type DeviceLogEntry,
  DeviceLogKind,
  type DeviceRevocation,
  RevokedBy,
} from '@keytrail/contracts';
import { equalBytes } from './bytes.ts';
import { certifiedAtMs, type DeviceKeys, verifyDeviceCertificate } from './certificate.ts';
import {
  deviceLogEntryHash,
  deviceRevocationStatement,
  noPreviousHash,
  rootKeyChangeStatements,
} from './device-log.ts';
import { lengths, type Primitives } from './primitives.ts';
import { CertificateError, DeviceLogError } from './problems.ts';
import { verifyStatement } from './statement.ts';

/** A device as a log tells of it. */
export interface LoggedDevice {
  readonly deviceId: string;
  /** 32 bytes, X25519. */
  readonly identityKey: Uint8Array;
  /** 32 bytes, Ed25519. */
  readonly signingKey: Uint8Array;
  /** 32 bytes: who signed the certificate that it has now. */
  readonly certificateRootKey: Uint8Array;
  /** 64 bytes. */
  readonly certificateSignature: Uint8Array;
  readonly addedInVersion: bigint;
  /** Absent as long as the device is good. */
  readonly revokedInVersion?: bigint;
}

/** A root key that a user had, or has. */
export interface LoggedRootKey {
  /** 32 bytes, Ed25519. */
  readonly rootKey: Uint8Array;
  readonly sinceVersion: bigint;
  /** False for a reset, whose only witness is the service; true for the first root key. */
  readonly signedByPrevious: boolean;
}

/** What a verified log amounts to. Plain data, to be remembered. */
export interface DeviceLogState {
  readonly userId: string;
  /** 0 before the first entry. */
  readonly version: bigint;
  /** Hash of the entry of that version; 32 zero bytes for version 0. */
  readonly head: Uint8Array;
  /** All root keys in their order; the last one is the user's. Empty for version 0. */
  readonly rootKeys: readonly LoggedRootKey[];
  /** In the order in which they were added, revoked ones included. */
  readonly devices: readonly LoggedDevice[];
}

export function emptyDeviceLog(userId: string): DeviceLogState {
  return { userId, version: 0n, head: noPreviousHash, rootKeys: [], devices: [] };
}

/** The root key that a log ends with: 32 bytes; undefined for a log without entries. */
export function loggedRootKey({ rootKeys }: DeviceLogState): Uint8Array | undefined {
  return rootKeys.at(-1)?.rootKey;
}

/**
 * Follows a user's device log from what is remembered of it. An entry is believed when it stands in its place in the chain and everything in it
 * that somebody must have signed is signed by the root key of that moment.
 *
 * @throws DeviceLogError: nothing of these entries may be remembered.
 */
export function verifyDeviceLog(
  primitives: Primitives,
  remembered: DeviceLogState,
  entries: readonly DeviceLogEntry[],
): DeviceLogState {
  const { userId } = remembered;
  let { version, head } = remembered;
  const rootKeys = [...remembered.rootKeys];
  const devices = new Map(remembered.devices.map((device) => [device.deviceId, device]));
  for (const entry of entries) {
    expectShape(entry);
    if (entry.version !== version + 1n) throw new DeviceLogError('version', `${entry.version} after ${version}`);
    if (!equalBytes(entry.previousHash, head)) throw new DeviceLogError('chain', `version ${entry.version}`);
    if (!equalBytes(entry.hash, deviceLogEntryHash(userId, entry))) throw new DeviceLogError('hash');
    const step = { primitives, userId, entry, rootKeys, devices };
    if (entry.kind === DeviceLogKind.ROOT_KEY_CHANGED) changeRootKey(step);
    else {
      expectRootKey(step);
      if (entry.kind === DeviceLogKind.DEVICE_ADDED) addDevice(step);
      else if (entry.kind === DeviceLogKind.DEVICE_RECERTIFIED) recertifyDevice(step);
      else revokeDevice(step);
    }
    version = entry.version;
    head = entry.hash;
  }
  return { userId, version, head, rootKeys, devices: [...devices.values()] };
}

interface Step {
  readonly primitives: Primitives;
  readonly userId: string;
  readonly entry: DeviceLogEntry;
  readonly rootKeys: LoggedRootKey[];
  readonly devices: Map<string, LoggedDevice>;
}

/** An entry has the parts of its kind and no others: what is absent is hashed like what is empty. */
function expectShape(entry: DeviceLogEntry): void {
  const { kind, certificate, revocation, rootKeyChange } = entry;
  const added = kind === DeviceLogKind.DEVICE_ADDED || kind === DeviceLogKind.DEVICE_RECERTIFIED;
  const revoked = kind === DeviceLogKind.DEVICE_REVOKED;
  const changed = kind === DeviceLogKind.ROOT_KEY_CHANGED;
  const keyLength = changed ? 0 : 32;
  const rules: [field: string, held: boolean][] = [
    ['kind', added || revoked || changed],
    ['certificate', (certificate !== undefined) === added],
    ['revocation', (revocation !== undefined) === revoked],
    ['root_key_change', (rootKeyChange !== undefined) === changed],
    ['device_id', (entry.deviceId !== '') === !changed],
    ['identity_key', entry.identityKey.length === keyLength],
    ['signing_key', entry.signingKey.length === keyLength],
    ['root_key', entry.rootKey.length === lengths.ed25519Key],
    ['recorded_at', isWholeMilliseconds(entry.recordedAt)],
    ['certificate.certified_at', certificate === undefined || certifiedAtMs(certificate) !== undefined],
    ['revocation.signed_at', revocation?.signedAt === undefined || isWholeMilliseconds(revocation.signedAt)],
  ];
  const broken = rules.find(([, held]) => !held);
  if (broken !== undefined) throw new DeviceLogError('malformed', broken[0]);
}

/** Only as much is hashed. */
function isWholeMilliseconds(at: { seconds: bigint; nanos: number } | undefined): boolean {
  return at !== undefined && at.seconds >= 0n && at.nanos >= 0 && at.nanos < 1e9 && at.nanos % 1_000_000 === 0;
}

/** The first entry sets the root key, as first use does; after it only a change of the root key changes it. */
function expectRootKey({ entry, rootKeys }: Step): void {
  const current = rootKeys.at(-1)?.rootKey;
  if (current !== undefined && !equalBytes(entry.rootKey, current)) {
    throw new DeviceLogError('root-key', `version ${entry.version}`);
  }
}

function addDevice({ primitives, userId, entry, rootKeys, devices }: Step): void {
  const { deviceId, version } = entry;
  if (devices.has(deviceId)) throw new DeviceLogError('device', `${deviceId} was there before`);
  devices.set(deviceId, { ...certified(primitives, userId, entry), addedInVersion: version });
  if (rootKeys.length === 0) {
    rootKeys.push({ rootKey: entry.rootKey, sinceVersion: version, signedByPrevious: true });
  }
}

function recertifyDevice(step: Step): void {
  const { primitives, userId, entry, devices } = step;
  const device = goodDevice(step);
  devices.set(device.deviceId, { ...device, ...certified(primitives, userId, entry) });
}

function certified(primitives: Primitives, userId: string, entry: DeviceLogEntry) {
  const { deviceId, identityKey, signingKey, certificate, rootKey } = entry;
  try {
    verifyDeviceCertificate(primitives, { userId, deviceId, identityKey, signingKey }, certificate, rootKey);
  } catch (error) {
    if (!(error instanceof CertificateError)) throw error;
    throw new DeviceLogError('certificate', error.problem);
  }
  const certificateSignature = certificate.signature;
  return { deviceId, identityKey, signingKey, certificateRootKey: rootKey, certificateSignature };
}

function revokeDevice(step: Step): void {
  const { primitives, userId, entry, devices } = step;
  const device = goodDevice(step);
  const { revocation } = entry;
  if (revocation === undefined) throw new DeviceLogError('malformed', 'revocation');
  expectRevocation(primitives, { ...device, userId }, revocation, entry.rootKey);
  const leftOut = !equalBytes(device.certificateRootKey, entry.rootKey);
  if (revocation.by === RevokedBy.ROOT_KEY_CHANGE && !leftOut) {
    throw new DeviceLogError('revocation', 'the root key certifies the device');
  }
  devices.set(device.deviceId, { ...device, revokedInVersion: entry.version });
}

function expectRevocation(
  primitives: Primitives,
  device: DeviceKeys,
  { by, signedAt, signature, revokingDeviceId }: DeviceRevocation,
  rootKey: Uint8Array,
): void {
  if (by !== RevokedBy.USER_DEVICE) {
    const known = by === RevokedBy.OPERATOR || by === RevokedBy.ROOT_KEY_CHANGE;
    const bare = signedAt === undefined && signature.length === 0;
    const named = by === RevokedBy.OPERATOR && revokingDeviceId !== '';
    if (!known || !bare || named) throw new DeviceLogError('malformed', 'revocation');
    return;
  }
  if (signedAt === undefined) throw new DeviceLogError('malformed', 'revocation.signed_at');
  const revokedAtMs = signedAt.seconds * 1000n + BigInt(signedAt.nanos / 1_000_000);
  const statement = deviceRevocationStatement(device, { rootKey, revokedAtMs, signature });
  if (!verifyStatement(primitives, statement)) throw new DeviceLogError('revocation', 'signature');
}

/** The device that an entry is about: there, not revoked, with the keys that it came with. */
function goodDevice({ entry, devices }: Step): LoggedDevice {
  const device = devices.get(entry.deviceId);
  if (device === undefined) throw new DeviceLogError('device', `${entry.deviceId} is not there`);
  if (device.revokedInVersion !== undefined) throw new DeviceLogError('device', `${entry.deviceId} is revoked`);
  const same = equalBytes(device.identityKey, entry.identityKey) && equalBytes(device.signingKey, entry.signingKey);
  if (!same) throw new DeviceLogError('device', `${entry.deviceId} has other keys`);
  return device;
}

function changeRootKey({ primitives, userId, entry, rootKeys }: Step): void {
  const { rootKeyChange: change, rootKey, version } = entry;
  const current = rootKeys.at(-1)?.rootKey;
  if (change === undefined || current === undefined) throw new DeviceLogError('root-key-change', 'nothing to change');
  const fits =
    equalBytes(change.previousRootKey, current) &&
    equalBytes(change.newRootKey, rootKey) &&
    change.deviceListVersion === version - 1n;
  if (!fits) throw new DeviceLogError('root-key-change', 'it is of another moment');
  // A root key that was given up may be in wrong hands since.
  if (rootKeys.some((former) => equalBytes(former.rootKey, rootKey))) {
    throw new DeviceLogError('root-key-change', 'a former root key comes back');
  }
  const signed = rootKeyChangeStatements(userId, change).every((statement) => verifyStatement(primitives, statement));
  if (!signed) throw new DeviceLogError('root-key-change', 'signature');
  rootKeys.push({ rootKey, sinceVersion: version, signedByPrevious: change.previousSignature.length > 0 });
}

/**
 * Compares a device list as GetDevices tells it with the verified log at the same version. Revoked devices may be left out of a list; nothing
 * else may.
 *
 * @throws DeviceLogError (`fork`, `list`).
 */
export function compareDeviceList(state: DeviceLogState, list: DeviceList): void {
  if (list.userId !== state.userId || list.version !== state.version) throw new DeviceLogError('list', 'version');
  if (!equalBytes(list.logHead, state.head)) throw new DeviceLogError('fork', `version ${list.version}`);
  if (!equalBytes(list.rootKey, loggedRootKey(state) ?? new Uint8Array())) throw new DeviceLogError('list', 'root_key');
  const logged = new Map(state.devices.map((device) => [device.deviceId, device]));
  for (const device of list.devices) {
    const known = logged.get(device.deviceId);
    logged.delete(device.deviceId);
    const same =
      known !== undefined &&
      device.userId === state.userId &&
      device.addedInVersion === known.addedInVersion &&
      (device.revokedAt !== undefined) === (known.revokedInVersion !== undefined) &&
      equalBytes(device.identityKey, known.identityKey) &&
      equalBytes(device.signingKey, known.signingKey) &&
      equalBytes(device.certificate?.rootKey ?? new Uint8Array(), known.certificateRootKey) &&
      equalBytes(device.certificate?.signature ?? new Uint8Array(), known.certificateSignature);
    if (!same) throw new DeviceLogError('list', device.deviceId);
  }
  const missing = [...logged.values()].find(({ revokedInVersion }) => revokedInVersion === undefined);
  if (missing !== undefined) throw new DeviceLogError('list', `${missing.deviceId} is missing`);
}

/** How a user got from one root key to another: undefined when the log does not tell. */
export function rootKeyChangeIn(
  { rootKeys }: DeviceLogState,
  from: Uint8Array,
  to: Uint8Array,
): 'signed' | 'reset' | undefined {
  const end = rootKeys.findIndex(({ rootKey }) => equalBytes(rootKey, to));
  if (end < 0) return undefined;
  const start = rootKeys.findIndex(({ rootKey }) => equalBytes(rootKey, from));
  const between = start < 0 || start >= end ? undefined : rootKeys.slice(start + 1, end + 1);
  return between?.every(({ signedByPrevious }) => signedByPrevious) ? 'signed' : 'reset';
}
