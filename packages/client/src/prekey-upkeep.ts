import type { CheckKeysResponse, PrekeyDifference, PrekeyStatus } from '@keytrail/contracts';
import type { Primitives } from '@keytrail/crypto';
import { type Clock, pause } from './clock.ts';
import { heldKeys } from './compare-keys.ts';
import type { Directory } from './directory.ts';
import type { Emitter } from './emitter.ts';
import { RefusalError, RegisteredDifferentlyError } from './errors.ts';
import type { ClientEvents } from './events.ts';
import { Watch } from './hints.ts';
import type { KeyStore, PrekeyName, StoredPrekey, StoredPrekeyKind } from './key-store.ts';
import type { RegisteredDevice } from './own-device.ts';
import { type PoolCounts, signPrekey, skipPrekeyIds } from './own-prekeys.ts';
import { type PrekeyUpload, type PrekeyUploadParts, PrekeyUploads, type RotatedPrekeys } from './prekey-uploads.ts';
import { registrationRemedy } from './registration-remedy.ts';
import type { Operation } from './tracing.ts';

export interface UpkeepOptions {
  /** How often an attached client looks after its prekeys without being told to, jittered; 6 hours by default. */
  readonly everyMs?: number;
  /** The longest random wait before work in the background, a look at other users' devices included, so that not all come at once; 2000 by default. */
  readonly jitterMs?: number;
  /** One-time prekeys that nobody used for so long are retired; 120 days by default. */
  readonly oneTimeMaxAgeMs?: number;
  /** How long the private keys of retired prekeys are kept for envelopes that are on their way; 14 days by default. */
  readonly graceMs?: number;
}

/** What was done to this device's prekeys; what was not needed is absent. */
export interface Upkeep {
  /** Unclaimed after a refill. */
  readonly replenished?: PoolCounts;
  readonly rotated?: RotatedPrekeys;
  readonly repaired?: PrekeyRepair;
}

/** Numbers of one-time prekeys about which device and service disagreed. */
export interface PrekeyRepair {
  /** The service had never seen them. */
  readonly uploaded: number;
  /** This device did not hold their private keys: nobody gets them any more. */
  readonly retired: number;
  /** The service had other keys under their ids: they were of no use. */
  readonly forgotten: number;
}

export interface PrekeyUpkeepParts extends PrekeyUploadParts {
  readonly primitives: Primitives;
  readonly store: KeyStore;
  readonly directory: Directory;
  readonly clock: Clock;
  readonly events: Emitter<ClientEvents>;
  readonly options: UpkeepOptions;
  /** What to fill pools up to when the service does not tell. */
  readonly prekeys: number;
  /** Runs work as an operation of its own, until the client is closed. */
  readonly run: <T>(name: string, work: (operation: Operation) => Promise<T>) => Promise<T>;
}

interface Wanted {
  /** Compare all keys with the service's. */
  readonly check: boolean;
  /** Fill the pools up though they are not low. */
  readonly fill: boolean;
}

const dayMs = 24 * 3_600_000;
const mostPerCall = 100;
const mostRetiredPerCall = 1_000;
/** Claims go on during a refill; it need not win against them. */
const mostCalls = 30;
const firstRetryMs = 60_000;
const noCounts: PoolCounts = { oneTime: 0, kem: 0 };

/**
 * Keeps the prekeys of this device: refills the pools, rotates what is due, repairs what differs from the service's, and deletes private keys when
 * their time is over. One pass at a time; nobody waits for it, and reading needs none of it.
 */
export class PrekeyUpkeep {
  readonly #parts: PrekeyUpkeepParts;
  readonly #options: Required<UpkeepOptions>;
  readonly #uploads: PrekeyUploads;
  #checked = false;
  #current: Promise<unknown> = Promise.resolve();
  #next: { wanted: Wanted; pass: Promise<Upkeep> } | undefined;
  #attached: { readonly signal: AbortSignal; readonly due: Watch } | undefined;

  constructor(parts: PrekeyUpkeepParts) {
    this.#parts = parts;
    this.#uploads = new PrekeyUploads(parts);
    const defaults = { everyMs: 6 * 3_600_000, jitterMs: 2_000, oneTimeMaxAgeMs: 120 * dayMs, graceMs: 14 * dayMs };
    this.#options = { ...defaults, ...parts.options };
  }

  /**
   * A pass that begins after the call: whoever calls while one is waiting to begin shares it.
   *
   * @throws NotRegisteredError, RefusalError, RegisteredDifferentlyError.
   */
  upkeep(wanted: Wanted = { check: true, fill: false }): Promise<Upkeep> {
    if (this.#next) {
      const { check, fill } = this.#next.wanted;
      this.#next.wanted = { check: check || wanted.check, fill: fill || wanted.fill };
      return this.#next.pass;
    }
    const begin = () => {
      const { wanted: all } = this.#next ?? { wanted };
      this.#next = undefined;
      return this.#parts.run('keep prekeys', (operation) => this.#pass(operation, all));
    };
    const pass = this.#current.then(begin, begin);
    this.#next = { wanted, pass };
    this.#current = pass;
    return pass;
  }

  /**
   * Goes on for as long as the client is attached: a pass at once when it is the first one of this process or something is due by `status`, and
   * then at intervals. Failures are told as `fault`, and tried again.
   */
  attached(signal: AbortSignal, status: PrekeyStatus | undefined): void {
    if (this.#attached?.signal !== signal) {
      const due = new Watch(() => {});
      this.#attached = { signal, due };
      void this.#keep(signal, due);
      if (!this.#checked) due.wake();
    }
    if (status === undefined || isDue(status)) this.#attached.due.wake();
  }

  /** Something is due, as the service says. */
  due(): void {
    this.#attached?.due.wake();
  }

  async #keep(signal: AbortSignal, due: Watch): Promise<void> {
    const { primitives, clock, events } = this.#parts;
    const { everyMs, jitterMs } = this.#options;
    const random = () => (primitives.randomBytes(1)[0] ?? 0) / 256;
    for (let failures = 0; ; ) {
      const retryMs = failures > 0 ? firstRetryMs * 2 ** (failures - 1) : everyMs;
      await either(due.next(), (waiting) =>
        pause(clock, Math.min(retryMs, everyMs) * (0.75 + random() / 2), AbortSignal.any([signal, waiting]), true),
      );
      due.forget();
      if (jitterMs > 0) await pause(clock, random() * jitterMs, signal, true).catch(() => {});
      if (signal.aborted) return;
      try {
        await this.upkeep({ check: !this.#checked, fill: false });
        failures = 0;
      } catch (error) {
        if (signal.aborted) return;
        events.emit('fault', { during: 'keep prekeys', error });
        if (error instanceof RefusalError && error.reason === 'DEVICE_REVOKED') return;
        failures += 1;
      }
    }
  }

  async #pass(operation: Operation, wanted: Wanted): Promise<Upkeep> {
    const { calls, own: ownDevice } = this.#parts;
    const own = await ownDevice.registered();
    await this.#uploads.resume(operation);
    const repair = wanted.check ? await this.#compareAndRepair(operation, own) : {};
    const { compared, repaired } = repair;
    const retired = await this.#retireOverAged(operation);
    const known = repaired === undefined && !retired ? compared?.status : undefined;
    const status =
      known ?? (await calls.call(operation, (options) => calls.identityKeys.getPrekeyStatus({}, options))).status;
    const rotated = await this.#rotate(operation, {
      signed: compared?.signedPrekeyDiffers === true || status?.signedPrekeyDue === true,
      lastResort: compared?.lastResortPrekeyDiffers === true || status?.lastResortPrekeyDue === true,
    });
    const fill = wanted.fill || status?.refillDue === true;
    const replenished = fill && status ? await this.#refill(operation, status) : undefined;
    await this.#forgetOld();
    if ('error' in repair) throw repair.error;
    if (wanted.check) this.#checked = true;
    return { ...(replenished && { replenished }), ...(rotated && { rotated }), ...(repaired && { repaired }) };
  }

  /** A comparison that fails must not keep the pools from being filled: its error is for the end of the pass. */
  async #compareAndRepair(
    operation: Operation,
    own: RegisteredDevice,
  ): Promise<{ compared?: CheckKeysResponse; repaired?: PrekeyRepair | undefined; error?: unknown }> {
    try {
      const compared = await this.#compare(operation, own);
      return { compared, repaired: await this.#repair(operation, own, compared) };
    } catch (error) {
      if (operation.signal.aborted) throw error;
      return { error };
    }
  }

  async #refill(operation: Operation, status: PrekeyStatus): Promise<PoolCounts> {
    const target = status.refillTo || this.#parts.prekeys;
    const missing = (unclaimed: number) => Math.max(0, Math.min(target - unclaimed, mostPerCall));
    let counts: PoolCounts = status.counts ?? noCounts;
    for (let call = 0; call < mostCalls; call += 1) {
      const count = { oneTime: missing(counts.oneTime), kem: missing(counts.kem) };
      if (count.oneTime + count.kem === 0) break;
      counts = await this.#uploads.add(operation, count);
    }
    const { oneTime, kem } = counts;
    this.#parts.events.emit('prekeysReplenished', { oneTime, kem });
    return { oneTime, kem };
  }

  async #rotate(operation: Operation, which: { signed: boolean; lastResort: boolean }) {
    if (!which.signed && !which.lastResort) return undefined;
    const rotated = await this.#uploads.rotate(operation, which);
    this.#parts.events.emit('prekeysRotated', rotated);
    return rotated;
  }

  async #compare(operation: Operation, own: RegisteredDevice): Promise<CheckKeysResponse> {
    const { calls, store } = this.#parts;
    let held = await heldKeys(store, own);
    if (held === undefined) {
      await this.#rotate(operation, { signed: true, lastResort: true });
      held = await heldKeys(store, own);
    }
    if (held === undefined) throw new Error('the key store keeps no prekeys');
    const request = held;
    const compared = await calls.call(operation, (options) => calls.identityKeys.checkKeys(request, options));
    if (compared.identityDiffers) {
      throw new RegisteredDifferentlyError(await registrationRemedy(this.#parts, operation, own));
    }
    return compared;
  }

  /** Undefined when no one-time prekey differs. */
  async #repair(
    operation: Operation,
    own: RegisteredDevice,
    { matches, oneTimePrekeys, oneTimeKemPrekeys, status }: CheckKeysResponse,
  ): Promise<PrekeyRepair | undefined> {
    if (matches) return undefined;
    const { store, events } = this.#parts;
    const oneTime = await this.#differing('one-time', oneTimePrekeys);
    const kem = await this.#differing('kem-one-time', oneTimeKemPrekeys);
    const differing = [status?.signedPrekeyId ?? 0, status?.lastResortPrekeyId ?? 0, ...oneTime.ids, ...kem.ids];
    await skipPrekeyIds(store, Math.max(...differing));
    await store.removePrekeys([...oneTime.useless, ...kem.useless]);
    const { primitives } = this.#parts;
    const uploads = {
      oneTimePrekeys: oneTime.unseen.map(({ keyId, keyPair }) => ({ keyId, publicKey: keyPair.publicKey })),
      oneTimeKemPrekeys: kem.unseen.map((prekey) => signPrekey(primitives, own, 'kem-one-time', prekey)),
      retireOneTimeKeyIds: oneTime.notHeld,
      retireKemKeyIds: kem.notHeld,
    };
    await this.#inParts(operation, uploads);
    const repaired = {
      uploaded: oneTime.unseen.length + kem.unseen.length,
      retired: oneTime.notHeld.length + kem.notHeld.length,
      forgotten: oneTime.useless.length + kem.useless.length,
    };
    if (repaired.uploaded + repaired.retired + repaired.forgotten === 0) return undefined;
    events.emit('prekeysRepaired', repaired);
    return repaired;
  }

  async #differing(kind: StoredPrekeyKind, difference: PrekeyDifference | undefined) {
    const { neverUploaded = [], otherKey = [], notHeld = [] } = difference ?? {};
    const stored = new Map((await this.#parts.store.prekeys(kind)).map((prekey) => [prekey.keyId, prekey]));
    const unseen = neverUploaded.map((keyId) => stored.get(keyId)).filter((prekey) => prekey !== undefined);
    return {
      unseen,
      useless: otherKey.map((keyId): PrekeyName => ({ kind, keyId })),
      // The service passes over what it would not hand out. What this device holds all the same did not fit into the comparison.
      notHeld: [...new Set([...otherKey, ...notHeld.filter((keyId) => !isInUse(stored.get(keyId)))])],
      ids: [...otherKey, ...notHeld],
    };
  }

  async #inParts(
    operation: Operation,
    { oneTimePrekeys, oneTimeKemPrekeys, retireOneTimeKeyIds, retireKemKeyIds }: Required<PrekeyUpload>,
  ): Promise<void> {
    const parts = Math.max(
      Math.ceil(Math.max(oneTimePrekeys.length, oneTimeKemPrekeys.length) / mostPerCall),
      Math.ceil(Math.max(retireOneTimeKeyIds.length, retireKemKeyIds.length) / mostRetiredPerCall),
    );
    for (let part = 0; part < parts; part += 1) {
      const of = <T>(all: readonly T[], most: number) => all.slice(part * most, (part + 1) * most);
      await this.#uploads.replenish(operation, {
        oneTimePrekeys: of(oneTimePrekeys, mostPerCall),
        oneTimeKemPrekeys: of(oneTimeKemPrekeys, mostPerCall),
        retireOneTimeKeyIds: of(retireOneTimeKeyIds, mostRetiredPerCall),
        retireKemKeyIds: of(retireKemKeyIds, mostRetiredPerCall),
      });
    }
  }

  /** Whether there were any. */
  async #retireOverAged(operation: Operation): Promise<boolean> {
    const { store, clock } = this.#parts;
    const { oneTimeMaxAgeMs, graceMs } = this.#options;
    const now = clock.now().getTime();
    const overAged = ({ madeAt, keepUntil }: StoredPrekey) =>
      keepUntil === undefined && madeAt !== undefined && madeAt.getTime() + oneTimeMaxAgeMs < now;
    const oneTime = (await store.prekeys('one-time')).filter(overAged);
    const kem = (await store.prekeys('kem-one-time')).filter(overAged);
    if (oneTime.length + kem.length === 0) return false;
    await this.#inParts(operation, {
      oneTimePrekeys: [],
      oneTimeKemPrekeys: [],
      retireOneTimeKeyIds: oneTime.map(({ keyId }) => keyId),
      retireKemKeyIds: kem.map(({ keyId }) => keyId),
    });
    await store.keepPrekeysUntil([...oneTime, ...kem], new Date(now + graceMs));
    return true;
  }

  async #forgetOld(): Promise<void> {
    const { store, clock } = this.#parts;
    const now = clock.now();
    for (const kind of ['signed', 'kem-last-resort', 'one-time', 'kem-one-time'] as const) {
      const over = (await store.prekeys(kind)).filter(({ keepUntil }) => keepUntil !== undefined && keepUntil <= now);
      if (over.length > 0) await store.removePrekeys(over);
    }
  }
}

function isInUse(prekey: StoredPrekey | undefined): boolean {
  return prekey !== undefined && prekey.keepUntil === undefined;
}

function isDue({ refillDue, signedPrekeyDue, lastResortPrekeyDue }: PrekeyStatus): boolean {
  return refillDue || signedPrekeyDue || lastResortPrekeyDue;
}

/** Resolves with the first of both; what waits is told to stop. Never rejects. */
async function either(event: Promise<void>, wait: (stop: AbortSignal) => Promise<void>): Promise<void> {
  const control = new AbortController();
  await Promise.race([event, wait(control.signal)]).catch(() => {});
  control.abort(new Error('not needed any more'));
}
