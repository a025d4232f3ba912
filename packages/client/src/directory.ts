import type { ClaimedUser, Device, DeviceCertificate, DeviceList } from '@keytrail/contracts';
import {
  CertificateError,
  type DeviceKeys,
  type Primitives,
  type Ref,
  type VerifiedRecipient,
  verifyDevice,
  verifyDeviceCertificate,
} from '@keytrail/crypto';
import { deviceKey, equalBytes } from './bytes.ts';
import type { Calls } from './calls.ts';
import type { DeviceLogs } from './device-logs.ts';
import { RefusalError, SessionRefusedError } from './errors.ts';
import { Flights } from './flights.ts';
import type { RootKeys, RootKeyVerdict } from './root-keys.ts';
import type { Operation } from './tracing.ts';

/** A device whose certificate verified under the pinned root key of its user. */
export interface CertifiedDevice extends DeviceKeys {
  readonly certificate: DeviceCertificate;
}

export type ListedDevice = DeviceKeys & { readonly certificate?: DeviceCertificate | undefined };

/** Whether identity key, signing key and certificate are the same: one root key may have certified several under one name. */
export function sameCertifiedKeys(a: Omit<ListedDevice, 'userId'>, b: Omit<ListedDevice, 'userId'>): boolean {
  const parts = ({ identityKey, signingKey, certificate }: Omit<ListedDevice, 'userId'>) => [
    identityKey,
    signingKey,
    certificate?.rootKey,
    certificate?.signature,
  ];
  return sameParts(parts(a), parts(b));
}

type Part = Uint8Array | undefined;

function sameParts(a: readonly Part[], b: readonly Part[]): boolean {
  return a.length === b.length && a.every((part, i) => equalBytes(part ?? new Uint8Array(), b[i] ?? new Uint8Array()));
}

const usersPerCall = 200;
const rememberedAtMost = 10_000;

/** Devices of users: as identity-keys lists them now, and as their certificates prove them for good. */
export class Directory {
  readonly #calls: Calls;
  readonly #primitives: Primitives;
  readonly #rootKeys: RootKeys;
  readonly #logs: DeviceLogs;
  readonly #certified = new Map<string, CertifiedDevice>();
  readonly #recipients = new Map<string, { parts: readonly Part[]; recipient: VerifiedRecipient }>();
  readonly #lookups = new Flights<CertifiedDevice[]>();

  constructor(parts: { calls: Calls; primitives: Primitives; rootKeys: RootKeys; logs: DeviceLogs }) {
    this.#calls = parts.calls;
    this.#primitives = parts.primitives;
    this.#rootKeys = parts.rootKeys;
    this.#logs = parts.logs;
  }

  /**
   * The device lists as they are now, revoked devices included, in the order of the users. Each follows from its user's log; the log is asked
   * for only when version or head are other ones than remembered.
   *
   * @throws DeviceListRefusedError, RefusalError.
   */
  async current(operation: Operation, userIds: readonly string[]): Promise<DeviceList[]> {
    const believed = new Map<string, DeviceList>();
    for (let wanted = [...userIds]; wanted.length > 0; ) {
      const before: bigint[] = [];
      for (const userId of wanted) before.push((await this.#logs.remembered(userId)).version);
      const lists = await this.#listAll(operation, wanted);
      if (lists.some(({ userId }, i) => userId !== wanted[i]) || lists.length !== wanted.length) {
        throw new Error('the answer has other users than were asked for');
      }
      for (const list of lists) believed.set(list.userId, list);
      wanted = await this.#logs.believe(operation, lists, before);
    }
    return userIds.flatMap((userId) => believed.get(userId) ?? []);
  }

  async #listAll(operation: Operation, userIds: readonly string[]): Promise<DeviceList[]> {
    const groups: string[][] = [];
    for (let from = 0; from < userIds.length; from += usersPerCall)
      groups.push(userIds.slice(from, from + usersPerCall));
    return (await Promise.all(groups.map((group) => this.#list(operation, group)))).flat();
  }

  async #list(operation: Operation, userIds: string[]): Promise<DeviceList[]> {
    try {
      const request = { userIds, includeRevoked: true };
      const { deviceLists } = await this.#calls.call(operation, (options) =>
        this.#calls.identityKeys.getDevices(request, options),
      );
      return deviceLists;
    } catch (error) {
      const tooMany = error instanceof RefusalError && error.reason === 'LIMIT_EXCEEDED' && userIds.length > 1;
      if (!tooMany) throw error;
      const half = Math.ceil(userIds.length / 2);
      const halves = [userIds.slice(0, half), userIds.slice(half)];
      return (await Promise.all(halves.map((part) => this.#list(operation, part)))).flat();
    }
  }

  /**
   * Verifies a device's certificate under its user's root key, which the caller has judged, and remembers it.
   *
   * @throws CertificateError.
   */
  certify(device: ListedDevice, rootKey: Uint8Array): CertifiedDevice {
    const { userId, deviceId, identityKey, signingKey, certificate } = device;
    const known = this.#remembered(device, rootKey);
    if (known && equalBytes(known.signingKey, signingKey) && equalBytes(known.identityKey, identityKey)) return known;
    verifyDeviceCertificate(this.#primitives, device, certificate, rootKey);
    if (certificate === undefined) throw new CertificateError('malformed', 'absent');
    const certified = { userId, deviceId, identityKey, signingKey, certificate };
    if (this.#certified.size >= rememberedAtMost) this.#certified.clear();
    this.#certified.set(deviceKey(device), certified);
    return certified;
  }

  /**
   * A device to seal to by its listed prekeys. Verified once: the prekeys of a device seldom change.
   *
   * @throws RecipientError.
   */
  recipient(device: Device, rootKey: Uint8Array): VerifiedRecipient {
    const prekeys = [device.signedPrekey, device.lastResortPrekey].flatMap((prekey) =>
      prekey ? [prekey.publicKey, prekey.signature] : [],
    );
    const parts = [rootKey, device.identityKey, device.signingKey, device.certificate?.signature, ...prekeys];
    const known = this.#recipients.get(deviceKey(device));
    if (known && sameParts(known.parts, parts)) return known.recipient;
    const recipient = verifyDevice(this.#primitives, device, rootKey);
    if (this.#recipients.size >= rememberedAtMost) this.#recipients.clear();
    this.#recipients.set(deviceKey(device), { parts, recipient });
    return recipient;
  }

  /**
   * A device with its certified keys, from memory or from identity-keys; revoked ones too, for what they once signed.
   *
   * @throws SessionRefusedError (`certificate`, `root-key-changed`), RefusalError.
   */
  async certified(operation: Operation, ref: Ref): Promise<CertifiedDevice> {
    const pinned = await this.#rootKeys.pinned(ref.userId);
    const known = pinned && this.#remembered(ref, pinned);
    if (known) return known;
    const devices = await this.#lookups.join(ref.userId, operation.signal, (signal) =>
      this.#lookUp({ ...operation, signal }, ref.userId),
    );
    const found = devices.find(({ deviceId }) => deviceId === ref.deviceId);
    if (found === undefined) throw new SessionRefusedError('certificate', `${ref.userId} has no such certified device`);
    return found;
  }

  /**
   * The certified signing key of a device, from the user's log as far as it was seen, if that has it: without any call, also of revoked ones.
   *
   * @throws SessionRefusedError (`certificate`, `root-key-changed`), RefusalError.
   */
  async signingKeyOf(operation: Operation, ref: Ref): Promise<Uint8Array> {
    const pinned = await this.#rootKeys.pinned(ref.userId);
    const { devices } = await this.#logs.remembered(ref.userId);
    const logged = devices.find(({ deviceId }) => deviceId === ref.deviceId);
    if (pinned && logged && equalBytes(logged.certificateRootKey, pinned)) return logged.signingKey;
    return (await this.certified(operation, ref)).signingKey;
  }

  async #lookUp(operation: Operation, userId: string): Promise<CertifiedDevice[]> {
    const [list] = await this.current(operation, [userId]);
    const certified = list && (await this.#certifyAll(list));
    if (certified === undefined) {
      throw new SessionRefusedError('root-key-changed', `the root key of ${userId} is not the pinned one`);
    }
    return certified;
  }

  /**
   * Judges a root key that came with something else than a device list. When it is not the pinned one, the user's log is looked at first: it
   * tells how the root key changed, if it did.
   *
   * @throws DeviceListRefusedError, RefusalError.
   */
  async judge(operation: Operation, userId: string, offered: Uint8Array): Promise<RootKeyVerdict> {
    const pinned = await this.#rootKeys.pinned(userId);
    if (pinned !== undefined && !equalBytes(pinned, offered)) await this.current(operation, [userId]);
    return this.#rootKeys.judge(userId, offered);
  }

  /**
   * Judges a user of whom a claim tells, because GetDevices may not yet: the root key, and the head of the log as far as it can be known. A
   * first contact is pinned when the root key certifies a device that was claimed from. Only devices that are `vouched` for may be sealed to.
   *
   * @throws DeviceListRefusedError, RefusalError.
   */
  async judgeClaim(
    operation: Operation,
    user: ClaimedUser,
    devices: readonly { readonly device: Ref; readonly bundle: ListedDevice | undefined }[],
  ): Promise<{ verdict: RootKeyVerdict; vouched: ReadonlySet<string> }> {
    const { userId } = user;
    const { rootKey, vouched } = await this.#logs.believeClaim(operation, user, devices);
    const verdict = await this.#rootKeys.judge(userId, rootKey);
    const certified =
      verdict.trusted && devices.some(({ bundle }) => bundle?.userId === userId && this.#isCertified(bundle, rootKey));
    // Another first contact with the same user may have pinned another root key meanwhile.
    const pinned = !certified || (await this.#rootKeys.confirm(userId, rootKey));
    return { verdict: pinned ? verdict : await this.#rootKeys.judge(userId, rootKey), vouched };
  }

  #isCertified(device: ListedDevice, rootKey: Uint8Array): boolean {
    try {
      this.certify(device, rootKey);
      return true;
    } catch (error) {
      if (!(error instanceof CertificateError)) throw error;
      return false;
    }
  }

  /** Fetched ahead, devices need not be asked for when something of theirs is to be verified. */
  async warm(operation: Operation, userIds: readonly string[]): Promise<void> {
    for (const list of await this.current(operation, userIds)) await this.#certifyAll(list);
  }

  /** Undefined when the user's root key changed and the change was not accepted. */
  async #certifyAll({ userId, rootKey, devices }: DeviceList): Promise<CertifiedDevice[] | undefined> {
    if (devices.length === 0) return [];
    if (!(await this.#rootKeys.judge(userId, rootKey)).trusted) return undefined;
    const certified: CertifiedDevice[] = [];
    for (const device of devices) {
      try {
        certified.push(this.certify(device, rootKey));
      } catch (error) {
        if (!(error instanceof CertificateError)) throw error;
      }
    }
    return certified;
  }

  #remembered(ref: Ref, rootKey: Uint8Array): CertifiedDevice | undefined {
    const known = this.#certified.get(deviceKey(ref));
    return known && equalBytes(known.certificate.rootKey, rootKey) ? known : undefined;
  }
}
