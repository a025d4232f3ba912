import { timestampFromDate } from '@bufbuild/protobuf/wkt';
import type {
  CheckKeysRequest,
  Device,
  KeyFingerprint,
  RegisterDeviceRequest,
  ReplenishPrekeysRequest,
  RotateSignedPrekeyRequest,
} from '@keytrail/contracts';
import { type PrekeyHash, publicKeyHash, publishedKeysDigest, type Ref } from '@keytrail/crypto';
import { refuse } from '@keytrail/rpc/refusal';

interface Pools {
  readonly oneTime: RegisterDeviceRequest['oneTimePrekeys'];
  readonly kem: RegisterDeviceRequest['oneTimeKemPrekeys'];
}

interface Prekey {
  readonly keyId: number;
  readonly publicKey: Uint8Array;
}

const keyOf = ({ userId, deviceId }: Ref) => `${userId} ${deviceId}`;
const fingerprint = (publicKey: Uint8Array) => Buffer.from(publicKeyHash(publicKey).slice(0, 8)).toString('hex');

/** The prekeys of all devices of a world, by the rules of identity-keys. */
export class WorldPrekeys {
  readonly pools = new Map<string, Pools>();
  /** By device, kind and id: each key that was ever uploaded. */
  readonly #ever = new Map<string, Uint8Array>();
  lowBelow = 3;
  refillTo = 10;
  signedPrekeyDue = false;
  lastResortPrekeyDue = false;
  keepOldUntil = new Date('2026-02-01T00:00:00Z');

  poolsOf(ref: Ref): Pools {
    return this.pools.get(keyOf(ref)) ?? { oneTime: [], kem: [] };
  }

  begin(device: Ref, { oneTimePrekeys, oneTimeKemPrekeys, lastResortPrekey, signedPrekey }: RegisterDeviceRequest) {
    this.pools.set(keyOf(device), { oneTime: [], kem: [] });
    if (lastResortPrekey) this.#remember(device, 'kem', [lastResortPrekey]);
    if (signedPrekey) this.#remember(device, 'signed', [signedPrekey]);
    return this.#add(device, oneTimePrekeys, oneTimeKemPrekeys);
  }

  replenish(device: Ref, request: ReplenishPrekeysRequest) {
    const pools = this.poolsOf(device);
    const counts = this.#add(device, request.oneTimePrekeys, request.oneTimeKemPrekeys);
    const retired = {
      oneTime: retire(pools.oneTime, request.retireOneTimeKeyIds),
      kem: retire(pools.kem, request.retireKemKeyIds),
    };
    return { counts: { oneTime: counts.oneTime - retired.oneTime, kem: counts.kem - retired.kem }, retired };
  }

  rotate(device: Device, { signedPrekey, lastResortPrekey }: RotateSignedPrekeyRequest) {
    if (signedPrekey) this.#remember(device, 'signed', [signedPrekey]);
    if (lastResortPrekey) this.#remember(device, 'kem', [lastResortPrekey]);
    if (signedPrekey) {
      device.signedPrekey = signedPrekey;
      this.signedPrekeyDue = false;
    }
    if (lastResortPrekey) {
      device.lastResortPrekey = lastResortPrekey;
      this.lastResortPrekeyDue = false;
    }
    return { keepOldUntil: timestampFromDate(this.keepOldUntil), counts: this.#counts(device) };
  }

  status(device: Device) {
    const counts = this.#counts(device);
    return {
      counts,
      lowBelow: this.lowBelow,
      refillTo: this.refillTo,
      refillDue: counts.oneTime < this.lowBelow || counts.kem < this.lowBelow,
      signedPrekeyId: device.signedPrekey?.keyId ?? 0,
      signedPrekeyDue: this.signedPrekeyDue,
      lastResortPrekeyId: device.lastResortPrekey?.keyId ?? 0,
      lastResortPrekeyDue: this.lastResortPrekeyDue,
    };
  }

  check(device: Device, request: CheckKeysRequest) {
    const pools = this.poolsOf(device);
    const oneTimePrekeys = this.#difference(device, 'one-time', pools.oneTime, request.oneTimePrekeys);
    const oneTimeKemPrekeys = this.#difference(device, 'kem', pools.kem, request.oneTimeKemPrekeys);
    const signedPrekeyDiffers = differs(device.signedPrekey, request.signedPrekey);
    const lastResortPrekeyDiffers = differs(device.lastResortPrekey, request.lastResortPrekey);
    const lists = [oneTimePrekeys, oneTimeKemPrekeys].flatMap((each) => [
      ...each.neverUploaded,
      ...each.otherKey,
      ...each.notHeld,
    ]);
    const agrees = sameBytes(this.#digest(device, request), request.digest);
    const prekeysDiffer = [oneTimePrekeys, oneTimeKemPrekeys].some(
      ({ neverUploaded, otherKey }) => neverUploaded.length + otherKey.length > 0,
    );
    return {
      matches: agrees && lists.length === 0 && !signedPrekeyDiffers && !lastResortPrekeyDiffers,
      identityDiffers: !agrees && !prekeysDiffer && !signedPrekeyDiffers && !lastResortPrekeyDiffers,
      signedPrekeyDiffers,
      lastResortPrekeyDiffers,
      oneTimePrekeys,
      oneTimeKemPrekeys,
      status: this.status(device),
    };
  }

  #digest(device: Device, request: CheckKeysRequest): Uint8Array {
    const ever = (kind: string, held: readonly { keyId: number }[]): PrekeyHash[] =>
      held.flatMap(({ keyId }) => {
        const publicKey = this.#ever.get(`${keyOf(device)} ${kind} ${keyId}`);
        return publicKey ? [{ keyId, hash: publicKeyHash(publicKey) }] : [];
      });
    return publishedKeysDigest({
      userId: device.userId,
      deviceId: device.deviceId,
      identityKey: device.identityKey,
      signingKey: device.signingKey,
      certificateSignature: device.certificate?.signature ?? new Uint8Array(),
      signedPrekey: hashed(device.signedPrekey),
      lastResortPrekey: hashed(device.lastResortPrekey),
      oneTimePrekeys: ever('one-time', request.oneTimePrekeys),
      oneTimeKemPrekeys: ever('kem', request.oneTimeKemPrekeys),
    });
  }

  #difference(device: Ref, kind: string, pool: readonly Prekey[], held: readonly KeyFingerprint[]) {
    const neverUploaded: number[] = [];
    const otherKey: number[] = [];
    for (const each of held) {
      const known = this.#ever.get(`${keyOf(device)} ${kind} ${each.keyId}`);
      if (known === undefined) neverUploaded.push(each.keyId);
      else if (fingerprint(known) !== Buffer.from(each.fingerprint).toString('hex')) otherKey.push(each.keyId);
    }
    const ids = new Set(held.map(({ keyId }) => keyId).filter((keyId) => !otherKey.includes(keyId)));
    const notHeld = pool.map(({ keyId }) => keyId).filter((keyId) => !ids.has(keyId));
    return { neverUploaded, otherKey, notHeld };
  }

  #add(device: Ref, oneTime: Pools['oneTime'], kem: Pools['kem']) {
    const pools = this.poolsOf(device);
    const newOneTime = this.#remember(device, 'one-time', oneTime);
    const newKem = this.#remember(device, 'kem', kem);
    pools.oneTime.push(...newOneTime);
    pools.kem.push(...newKem);
    return this.#counts(device);
  }

  /** Those that are new. */
  #remember<P extends Prekey>(device: Ref, kind: string, prekeys: readonly P[]): P[] {
    const added = prekeys.filter(({ keyId, publicKey }) => {
      const known = this.#ever.get(`${keyOf(device)} ${kind} ${keyId}`);
      if (known && fingerprint(known) !== fingerprint(publicKey))
        throw refuse('PREKEY_ID_CONFLICT', 'in use', { metadata: { key_id: String(keyId) } });
      return known === undefined;
    });
    for (const { keyId, publicKey } of added) this.#ever.set(`${keyOf(device)} ${kind} ${keyId}`, publicKey);
    return added;
  }

  #counts(device: Ref) {
    const { oneTime, kem } = this.poolsOf(device);
    return { oneTime: oneTime.length, kem: kem.length };
  }
}

function hashed(prekey: Prekey | undefined): PrekeyHash {
  if (!prekey) throw new Error('the device has no such prekey');
  return { keyId: prekey.keyId, hash: publicKeyHash(prekey.publicKey) };
}

function sameBytes(a: Uint8Array, b: Uint8Array): boolean {
  return Buffer.compare(a, b) === 0;
}

function retire(pool: Prekey[], keyIds: readonly number[]): number {
  const kept = pool.filter(({ keyId }) => !keyIds.includes(keyId));
  return pool.splice(0, pool.length, ...kept).length - kept.length;
}

function differs(current: Prekey | undefined, held: KeyFingerprint | undefined): boolean {
  if (!current || !held) return true;
  return (
    current.keyId !== held.keyId || fingerprint(current.publicKey) !== Buffer.from(held.fingerprint).toString('hex')
  );
}
