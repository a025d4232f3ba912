import type { ClaimedUser, DeviceList, DeviceLogEntry } from '@keytrail/contracts';
import {
  compareDeviceList,
  DeviceLogError,
  type DeviceLogState,
  emptyDeviceLog,
  type LoggedDevice,
  loggedRootKey,
  type Primitives,
  type Ref,
  verifyDeviceLog,
} from '@keytrail/crypto';
import { equalBytes } from './bytes.ts';
import type { Calls } from './calls.ts';
import type { ListedDevice } from './directory.ts';
import type { Emitter } from './emitter.ts';
import { type DeviceListProblem, DeviceListRefusedError } from './errors.ts';
import type { ClientEvents } from './events.ts';
import { Turns } from './flights.ts';
import type { KeyStore, StoredDeviceLog, ToldHead } from './key-store.ts';
import type { RootKeys } from './root-keys.ts';
import type { Operation } from './tracing.ts';

export interface DeviceLogParts {
  readonly calls: Calls;
  readonly primitives: Primitives;
  readonly store: KeyStore;
  readonly own: Ref;
  readonly rootKeys: RootKeys;
  readonly events: Emitter<ClientEvents>;
  /** This very device is revoked. */
  readonly onRevoked: () => void;
}

interface Step {
  readonly log: StoredDeviceLog;
  readonly state: StoredDeviceLog;
}

interface ClaimedDevice {
  readonly device: Ref;
  /** Without one, none could be had. */
  readonly bundle: ListedDevice | undefined;
}

export interface BelievedClaim {
  /** 32 bytes, Ed25519: the log's, as far as that goes, else the claim's. */
  readonly rootKey: Uint8Array;
  /** Ids of devices that may be sealed to once the root key is trusted. */
  readonly vouched: ReadonlySet<string>;
}

/** What a log that goes on can never bring about is `impossible`: a revoked device that is back, or other keys under a name. */
function standingOf(
  known: LoggedDevice | undefined,
  bundle: ListedDevice | undefined,
): 'good' | 'unknown' | 'impossible' {
  if (known === undefined) return 'unknown';
  if (known.revokedInVersion !== undefined) return 'impossible';
  if (bundle === undefined || isLogged(known, bundle)) return 'good';
  const sameKeys = equalBytes(known.identityKey, bundle.identityKey) && equalBytes(known.signingKey, bundle.signingKey);
  return sameKeys ? 'unknown' : 'impossible';
}

/** Whether a device has the keys and the certificate that the log says. */
export function isLogged(known: LoggedDevice, device: ListedDevice): boolean {
  const { identityKey, signingKey, certificateRootKey: rootKey, certificateSignature: signature } = known;
  return (
    equalBytes(device.identityKey, identityKey) &&
    equalBytes(device.signingKey, signingKey) &&
    equalBytes(device.certificate?.rootKey ?? new Uint8Array(), rootKey) &&
    equalBytes(device.certificate?.signature ?? new Uint8Array(), signature)
  );
}

const usersPerCall = 200;
const rememberedAtMost = 10_000;
/** Heads that wait for their log to be told; of a user whose log never is, the oldest ones count. */
const headsAtMost = 16;

/** What this device has seen of users' device logs. It never goes back, and whatever a list says must follow from it. */
export class DeviceLogs {
  readonly #parts: DeviceLogParts;
  readonly #logs = new Map<string, StoredDeviceLog>();
  readonly #turns = new Turns();

  constructor(parts: DeviceLogParts) {
    this.#parts = parts;
  }

  /** Empty for a user of whom nothing was seen. */
  async remembered(userId: string): Promise<StoredDeviceLog> {
    const known = this.#logs.get(userId);
    if (known !== undefined) return known;
    const stored = (await this.#parts.store.deviceLog(userId)) ?? { ...emptyDeviceLog(userId), toldHeads: [] };
    // Somebody may have gone further while the store was asked.
    return this.#logs.get(userId) ?? this.#keep(stored);
  }

  /**
   * Believes lists that follow from the users' logs, of which it fetches what is new. `before` are the versions remembered when the lists were
   * asked for.
   *
   * @returns the users whose lists were overtaken meanwhile by a newer one: to be asked for again.
   * @throws DeviceListRefusedError, RefusalError.
   */
  async believe(operation: Operation, lists: readonly DeviceList[], before: readonly bigint[]): Promise<string[]> {
    const news: DeviceList[] = [];
    for (const [i, list] of lists.entries()) {
      const log = await this.remembered(list.userId);
      if (list.version === 0n && list.devices.length === 0) continue;
      if (list.version < (before[i] ?? 0n)) this.#refuse(log, list.version, 'rolled-back');
      if (list.version === log.version) this.#compare(log, list);
      else if (list.version > log.version) news.push(list);
    }
    const entries = await this.#fetch(operation, news);
    for (const [i, list] of news.entries()) {
      const step = await this.#turns.take(list.userId, () => this.#follow(list, entries[i] ?? []));
      // Not within the turn: the application is asked, and may come back here.
      if (step) await this.#tell(step);
    }
    const overtaken: string[] = [];
    for (const { userId, version } of lists) {
      const log = await this.remembered(userId);
      if (version > 0n && version < log.version) overtaken.push(userId);
    }
    return overtaken;
  }

  /**
   * What a claim tells of a user of whom GetDevices may tell nothing. What can be looked up is; else the head is remembered, and must be
   * in the log once that is told. Where anything was seen of the log, only its good devices are vouched for: a device that came later has to
   * wait until the log is told. A claim that is repeated is answered as it was then, and may be older than what is remembered.
   *
   * @throws DeviceListRefusedError, RefusalError.
   */
  async believeClaim(
    operation: Operation,
    { userId, deviceListVersion: version, rootKey, logHead }: ClaimedUser,
    claimed: readonly ClaimedDevice[],
  ): Promise<BelievedClaim> {
    const before = await this.remembered(userId);
    const asked = { userId, version, logHead };
    const [entries] = version > before.version ? await this.#fetch(operation, [asked]) : [[]];
    const { log, state, vouched } = await this.#turns.take(userId, async () => {
      const log = await this.remembered(userId);
      const news = (entries ?? []).filter((entry) => entry.version > log.version && entry.version <= version);
      const state = news.length === 0 ? log : this.#fold(log, version, news);
      if (state.version === version) {
        if (!equalBytes(state.head, logHead)) this.#refuse(log, version, 'fork');
        if (!equalBytes(loggedRootKey(state) ?? new Uint8Array(), rootKey)) this.#refuse(log, version, 'list');
      }
      const vouched = this.#vouchedBy(state, version, claimed);
      if (state !== log) await this.#pinAndSave(state);
      return { log, state, vouched };
    });
    if (state !== log) await this.#tell({ log, state });
    await this.told(userId, { version, head: logHead });
    return { rootKey: (state.version >= version && loggedRootKey(state)) || rootKey, vouched };
  }

  /** Of the claimed devices, those that are good by what was seen of the log. @throws DeviceListRefusedError. */
  #vouchedBy(state: StoredDeviceLog, version: bigint, claimed: readonly ClaimedDevice[]): ReadonlySet<string> {
    // Of a user who was never seen, certificates are all there is.
    if (state.version === 0n) return new Set(claimed.map(({ device }) => device.deviceId));
    const vouched = new Set<string>();
    for (const { device, bundle } of claimed) {
      const known = state.devices.find(({ deviceId }) => deviceId === device.deviceId);
      const standing = standingOf(known, bundle);
      if (standing === 'good') vouched.add(device.deviceId);
      else if (version === state.version) this.#refuse(state, version, 'list');
      else if (version > state.version && standing === 'impossible') this.#refuse(state, version, 'list');
    }
    return vouched;
  }

  /** The server tells nothing where it always may. @throws DeviceListRefusedError. */
  async refuseUntold(userId: string): Promise<never> {
    return this.#refuse(await this.remembered(userId), 0n, 'rolled-back');
  }

  /** A head that an answer named; it must be in the log. @throws DeviceListRefusedError. */
  told(userId: string, told: ToldHead): Promise<void> {
    return this.#turns.take(userId, async () => {
      const log = await this.remembered(userId);
      const same = log.toldHeads.find(({ version }) => version === told.version);
      if (same !== undefined && !equalBytes(same.head, told.head)) this.#refuse(log, told.version, 'fork');
      if (told.version <= log.version || same !== undefined || log.toldHeads.length >= headsAtMost) return;
      await this.#save({ ...log, toldHeads: [...log.toldHeads, told] });
    });
  }

  /** Somebody compared this root key: a history that leads elsewhere is worth nothing any more. */
  accepted(userId: string, rootKey: Uint8Array): Promise<void> {
    return this.#turns.take(userId, async () => {
      const logged = loggedRootKey(await this.remembered(userId));
      if (logged === undefined || equalBytes(logged, rootKey)) return;
      await this.#save({ ...emptyDeviceLog(userId), toldHeads: [] });
    });
  }

  /** Also revocations are forgotten: only for a person who knows that the server went back for a good reason. */
  forget(userId: string): Promise<void> {
    return this.#turns.take(userId, () => this.#save({ ...emptyDeviceLog(userId), toldHeads: [] }));
  }

  /**
   * Whether a session that was sealed by these lists may be readable by a device that is known to be revoked: it was in the list, or came later
   * and may have been re-sealed to.
   */
  async revokedSince(lists: readonly { readonly userId: string; readonly version: bigint }[]): Promise<boolean> {
    for (const { userId, version } of lists) {
      const { devices } = await this.remembered(userId);
      if (devices.some(({ revokedInVersion }) => (revokedInVersion ?? 0n) > version)) return true;
    }
    return false;
  }

  /** The entries of each list's log from what is remembered up to the list's version, as far as they are told. */
  async #fetch(
    operation: Operation,
    lists: readonly Pick<DeviceList, 'userId' | 'version'>[],
  ): Promise<DeviceLogEntry[][]> {
    const { calls } = this.#parts;
    const found = new Map<string, DeviceLogEntry[]>();
    let open: { userId: string; version: bigint; afterVersion: bigint }[] = [];
    for (const { userId, version } of lists) {
      open.push({ userId, version, afterVersion: (await this.remembered(userId)).version });
    }
    while (open.length > 0) {
      const users = open.slice(0, usersPerCall);
      const { deviceLogs } = await calls.call(operation, (options) =>
        calls.identityKeys.listDeviceLog(
          { users: users.map(({ userId, afterVersion }) => ({ userId, afterVersion })) },
          options,
        ),
      );
      const unfinished = users.flatMap((user, i) => {
        const entries = deviceLogs[i]?.entries ?? [];
        found.set(user.userId, [...(found.get(user.userId) ?? []), ...entries]);
        const afterVersion = entries.at(-1)?.version ?? 0n;
        const goesOn = deviceLogs[i]?.more === true && afterVersion > user.afterVersion && afterVersion < user.version;
        return goesOn ? [{ ...user, afterVersion }] : [];
      });
      // An answer that is full has nothing of its last users yet.
      const untold = users.filter(({ userId }, i) => deviceLogs[i]?.more === true && found.get(userId)?.length === 0);
      const stuck = untold.length === users.length;
      open = [...unfinished, ...(stuck ? [] : untold), ...open.slice(usersPerCall)];
    }
    return lists.map(({ userId }) => found.get(userId) ?? []);
  }

  async #follow(list: DeviceList, entries: readonly DeviceLogEntry[]): Promise<Step | undefined> {
    const log = await this.remembered(list.userId);
    if (log.version > list.version) return undefined;
    const news = entries.filter(({ version }) => version > log.version && version <= list.version);
    const state = this.#fold(log, list.version, news);
    if (state.version !== list.version) this.#refuse(log, list.version, 'version');
    this.#compare(state, list);
    await this.#pinAndSave(state);
    return { log, state };
  }

  #fold(log: StoredDeviceLog, version: bigint, entries: readonly DeviceLogEntry[]): StoredDeviceLog {
    let state: DeviceLogState;
    try {
      state = verifyDeviceLog(this.#parts.primitives, log, entries);
    } catch (error) {
      if (!(error instanceof DeviceLogError)) throw error;
      return this.#refuse(log, version, error.problem, error);
    }
    for (const told of log.toldHeads) {
      const entry = entries.find((each) => each.version === told.version);
      if (entry !== undefined && !equalBytes(entry.hash, told.head)) this.#refuse(log, version, 'fork');
    }
    return { ...state, toldHeads: log.toldHeads.filter((told) => told.version > state.version) };
  }

  #compare(state: StoredDeviceLog, list: DeviceList): void {
    try {
      compareDeviceList(state, list);
    } catch (error) {
      if (!(error instanceof DeviceLogError)) throw error;
      this.#refuse(state, list.version, error.problem, error);
    }
  }

  async #tell({ log, state }: Step): Promise<void> {
    const { own, rootKeys, events, onRevoked } = this.#parts;
    const { userId, version, devices } = state;
    const rootKey = loggedRootKey(state);
    if (rootKey !== undefined && (await rootKeys.confirm(userId, rootKey)) === false) {
      await rootKeys.judge(userId, rootKey);
    }
    // Of a user who was never seen before, nothing changed.
    const seen = log.version > 0n ? log.version : log.toldHeads[0]?.version;
    if (seen !== undefined && version > seen) {
      const added = devices.filter(({ addedInVersion }) => addedInVersion > seen);
      const revoked = devices.filter(({ revokedInVersion }) => (revokedInVersion ?? 0n) > seen);
      const ids = (some: typeof devices) => some.map(({ deviceId }) => deviceId);
      events.emit('devicesChanged', { userId, version, added: ids(added), revoked: ids(revoked) });
    }
    const self = userId === own.userId && devices.find(({ deviceId }) => deviceId === own.deviceId);
    if (self && self.revokedInVersion !== undefined) onRevoked();
  }

  /** In this order: the root key of a log that is remembered is looked at no more. */
  async #pinAndSave(state: StoredDeviceLog): Promise<void> {
    const rootKey = loggedRootKey(state);
    if (rootKey !== undefined) await this.#parts.rootKeys.confirm(state.userId, rootKey);
    await this.#save(state);
  }

  async #save(log: StoredDeviceLog): Promise<void> {
    await this.#parts.store.saveDeviceLog(log);
    this.#keep(log);
  }

  #keep(log: StoredDeviceLog): StoredDeviceLog {
    if (this.#logs.size >= rememberedAtMost) this.#logs.clear();
    this.#logs.set(log.userId, log);
    return log;
  }

  #refuse(log: StoredDeviceLog, version: bigint, problem: DeviceListProblem, cause?: unknown): never {
    const { userId } = log;
    this.#parts.events.emit('deviceListRefused', { userId, problem, version, remembered: log.version });
    throw new DeviceListRefusedError(userId, problem, cause);
  }
}
