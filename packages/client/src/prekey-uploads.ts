import { create, fromBinary, toBinary } from '@bufbuild/protobuf';
import { timestampDate } from '@bufbuild/protobuf/wkt';
import {
  type ReplenishPrekeysRequest,
  ReplenishPrekeysRequestSchema,
  type RotateSignedPrekeyRequest,
  RotateSignedPrekeyRequestSchema,
} from '@keytrail/contracts';
import { createKemPrekey, createSignedPrekey } from '@keytrail/crypto';
import { randomUuid } from './bytes.ts';
import type { Calls } from './calls.ts';
import { isDecided, RefusalError } from './errors.ts';
import type { PrekeyName, StoredPrekeyKind } from './key-store.ts';
import type { OwnDevice } from './own-device.ts';
import {
  makeOneTimePrekeys,
  type PoolCounts,
  type PrekeyMakers,
  reservePrekeyIds,
  storedPrekey,
} from './own-prekeys.ts';
import type { Operation } from './tracing.ts';

export interface PrekeyUploadParts extends PrekeyMakers {
  readonly calls: Calls;
  readonly own: OwnDevice;
}

export interface RotatedPrekeys {
  /** The ids of the new ones; undefined where there is no new one. */
  readonly signedPrekeyId: number | undefined;
  readonly lastResortPrekeyId: number | undefined;
  /** The private keys of the old ones are kept until then. */
  readonly keepOldUntil: Date;
}

/** Prekeys to add, whose private keys are in the store, and ids to retire. */
export interface PrekeyUpload {
  readonly oneTimePrekeys?: { keyId: number; publicKey: Uint8Array }[];
  readonly oneTimeKemPrekeys?: { keyId: number; publicKey: Uint8Array; signature: Uint8Array }[];
  readonly retireOneTimeKeyIds?: number[];
  readonly retireKemKeyIds?: number[];
}

const replenishing = 'replenish prekeys';
const rotating = 'rotate prekeys';
/** For services that do not tell how long. */
const graceMs = 14 * 24 * 3_600_000;
/** How far to go on when an id is in use at the service, as after an older copy of the store was restored. */
const idSkips = [1_000, 10_000, 100_000];

/**
 * Prekeys on their way to the service. What is sent was kept before, as keys and as a pending request, so that after a crash the same request is
 * sent again; when it is refused, its private keys are forgotten.
 */
export class PrekeyUploads {
  readonly #parts: PrekeyUploadParts;

  constructor(parts: PrekeyUploadParts) {
    this.#parts = parts;
  }

  /** Sends again what was not answered before. */
  async resume(operation: Operation): Promise<void> {
    const { store } = this.#parts;
    const replenish = await store.pending(replenishing);
    if (replenish)
      await passOver(this.#sendReplenish(operation, fromBinary(ReplenishPrekeysRequestSchema, replenish.content)));
    const rotate = await store.pending(rotating);
    if (rotate)
      await passOver(this.#sendRotate(operation, fromBinary(RotateSignedPrekeyRequestSchema, rotate.content)));
  }

  /** Makes and uploads at most 100 of each kind. Returns how many are unclaimed then. @throws RefusalError. */
  add(operation: Operation, count: PoolCounts): Promise<PoolCounts> {
    return this.#withFreshIds(async () =>
      this.replenish(operation, await makeOneTimePrekeys(this.#parts, await this.#parts.own.registered(), count)),
    );
  }

  /** At most 100 prekeys of each kind, and 1,000 ids of each kind to retire. */
  async replenish(operation: Operation, upload: PrekeyUpload): Promise<PoolCounts> {
    const { primitives, store } = this.#parts;
    const request = create(ReplenishPrekeysRequestSchema, { requestId: randomUuid(primitives), ...upload });
    await store.savePending(replenishing, { content: toBinary(ReplenishPrekeysRequestSchema, request) });
    return this.#sendReplenish(operation, request);
  }

  /** Makes new signed and last-resort prekeys the current ones. @throws RefusalError. */
  rotate(operation: Operation, which: { signed: boolean; lastResort: boolean }): Promise<RotatedPrekeys> {
    return this.#withFreshIds(async () => {
      const { primitives, store, clock } = this.#parts;
      const own = await this.#parts.own.registered();
      const [signedId = 0, lastResortId = 0] = await reservePrekeyIds(store, 2);
      const signed = which.signed ? createSignedPrekey(primitives, own, signedId) : undefined;
      const lastResort = which.lastResort
        ? createKemPrekey(primitives, own, lastResortId, 'kem-last-resort')
        : undefined;
      const madeAt = clock.now();
      await store.savePrekeys([
        ...(signed ? [storedPrekey('signed', signed, madeAt)] : []),
        ...(lastResort ? [storedPrekey('kem-last-resort', lastResort, madeAt)] : []),
      ]);
      const request = create(RotateSignedPrekeyRequestSchema, {
        requestId: randomUuid(primitives),
        ...(signed && { signedPrekey: signed.upload }),
        ...(lastResort && { lastResortPrekey: lastResort.upload }),
      });
      await store.savePending(rotating, { content: toBinary(RotateSignedPrekeyRequestSchema, request) });
      return this.#sendRotate(operation, request);
    });
  }

  async #sendReplenish(operation: Operation, request: ReplenishPrekeysRequest): Promise<PoolCounts> {
    const { calls, store } = this.#parts;
    try {
      const { counts } = await calls.call(operation, (options) =>
        calls.identityKeys.replenishPrekeys(request, options),
      );
      await store.removePending(replenishing);
      return { oneTime: counts?.oneTime ?? 0, kem: counts?.kem ?? 0 };
    } catch (error) {
      await this.#forgetRefused(error, replenishing, [
        ...names('one-time', request.oneTimePrekeys),
        ...names('kem-one-time', request.oneTimeKemPrekeys),
      ]);
      throw error;
    }
  }

  async #sendRotate(operation: Operation, request: RotateSignedPrekeyRequest): Promise<RotatedPrekeys> {
    const { calls, store, clock } = this.#parts;
    const { signedPrekey, lastResortPrekey } = request;
    try {
      const answer = await calls.call(operation, (options) => calls.identityKeys.rotateSignedPrekey(request, options));
      const keepOldUntil = answer.keepOldUntil
        ? timestampDate(answer.keepOldUntil)
        : new Date(clock.now().getTime() + graceMs);
      await this.#makeCurrent(
        { signedPrekeyId: signedPrekey?.keyId, lastResortPrekeyId: lastResortPrekey?.keyId },
        keepOldUntil,
      );
      await store.removePending(rotating);
      return { signedPrekeyId: signedPrekey?.keyId, lastResortPrekeyId: lastResortPrekey?.keyId, keepOldUntil };
    } catch (error) {
      await this.#forgetRefused(error, rotating, [
        ...names('signed', signedPrekey ? [signedPrekey] : []),
        ...names('kem-last-resort', lastResortPrekey ? [lastResortPrekey] : []),
      ]);
      throw error;
    }
  }

  async #makeCurrent(
    { signedPrekeyId, lastResortPrekeyId }: Omit<RotatedPrekeys, 'keepOldUntil'>,
    keepOldUntil: Date,
  ): Promise<void> {
    const { store, own } = this.#parts;
    const current = await own.change((device) => ({
      ...device,
      signedPrekeyId: signedPrekeyId ?? device.signedPrekeyId,
      lastResortPrekeyId: lastResortPrekeyId ?? device.lastResortPrekeyId,
    }));
    const old = [
      ...(await store.prekeys('signed')).filter(({ keyId }) => keyId !== current.signedPrekeyId),
      ...(await store.prekeys('kem-last-resort')).filter(({ keyId }) => keyId !== current.lastResortPrekeyId),
    ];
    await store.keepPrekeysUntil(
      old.filter(({ keepUntil }) => keepUntil === undefined),
      keepOldUntil,
    );
  }

  async #forgetRefused(error: unknown, pending: string, prekeys: readonly PrekeyName[]): Promise<void> {
    if (!isDecided(error)) return;
    const { store, own } = this.#parts;
    const device = await own.stored();
    const current = [device?.signedPrekeyId, device?.lastResortPrekeyId];
    await store.removePrekeys(prekeys.filter(({ keyId }) => !current.includes(keyId)));
    await store.removePending(pending);
  }

  async #withFreshIds<T>(work: () => Promise<T>): Promise<T> {
    for (const skip of idSkips) {
      try {
        return await work();
      } catch (error) {
        if (!(error instanceof RefusalError) || error.reason !== 'PREKEY_ID_CONFLICT') throw error;
        await reservePrekeyIds(this.#parts.store, skip);
      }
    }
    return work();
  }
}

function names(kind: StoredPrekeyKind, prekeys: readonly { keyId: number }[]): PrekeyName[] {
  return prekeys.map(({ keyId }) => ({ kind, keyId }));
}

/** A refused leftover has been cleaned up: what it was for is looked at anew. */
async function passOver(sent: Promise<unknown>): Promise<void> {
  await sent.catch((error: unknown) => {
    if (!isDecided(error)) throw error;
  });
}
