import { fromBinary } from '@bufbuild/protobuf';
import { type DeviceCertificate, DeviceCertificateSchema, type Envelope } from '@keytrail/contracts';
import type { KeyPair, Opener, Ref, Sealer } from '@keytrail/crypto';
import { NotRegisteredError } from './errors.ts';
import { Turns } from './flights.ts';
import type { KeyStore, StoredDevice, StoredPrekeyKind } from './key-store.ts';

/** This device once it is registered. */
export interface RegisteredDevice extends Sealer {
  readonly rootKey: KeyPair;
}

/** What spending an envelope costs this device. */
export interface EnvelopeKeys {
  readonly opener: Opener;
  readonly spent: readonly { kind: StoredPrekeyKind; keyId: number }[];
}

/** This device and its private keys. */
export class OwnDevice implements Ref {
  readonly userId: string;
  readonly deviceId: string;
  readonly #store: KeyStore;
  readonly #changes = new Turns();
  readonly #identity = new Turns();
  #registered: RegisteredDevice | undefined;
  #reloads = 0;

  constructor(ref: Ref, store: KeyStore) {
    this.userId = ref.userId;
    this.deviceId = ref.deviceId;
    this.#store = store;
  }

  /** @throws NotRegisteredError. */
  async registered(): Promise<RegisteredDevice> {
    while (this.#registered === undefined) {
      const reloads = this.#reloads;
      const read = registeredDevice(await this.stored());
      // What was read before a change must not outlive it.
      if (reloads !== this.#reloads) continue;
      if (read === undefined) throw new NotRegisteredError();
      this.#registered = read;
    }
    return this.#registered;
  }

  /**
   * Runs what makes, registers, certifies or replaces long-term keys, one after the other: two of them at once would each undo what the other one
   * wrote. Not to be taken within itself.
   */
  alone<T>(work: () => Promise<T>): Promise<T> {
    return this.#identity.take('identity', work);
  }

  /** Changes what is stored of this device, one change after the other, so that a rotation and a new root key lose nothing of each other. */
  change(alter: (device: StoredDevice) => StoredDevice): Promise<StoredDevice> {
    return this.#changes.take('device', async () => {
      const stored = await this.stored();
      if (stored === undefined) throw new NotRegisteredError();
      const changed = alter(stored);
      await this.#store.saveDevice(changed);
      this.reload();
      return changed;
    });
  }

  /** The store has other long-term keys of this device now. */
  reload(): void {
    this.#registered = undefined;
    this.#reloads += 1;
  }

  /** @throws Error when the store is another device's. */
  async stored(): Promise<StoredDevice | undefined> {
    const stored = await this.#store.device();
    if (stored !== undefined && (stored.userId !== this.userId || stored.deviceId !== this.deviceId)) {
      throw new Error(`the key store belongs to ${stored.userId} ${stored.deviceId}`);
    }
    return stored;
  }

  /** The private keys that an envelope names; those that are gone are undefined in it. */
  async keysFor(envelope: Envelope): Promise<EnvelopeKeys> {
    const own = await this.registered();
    const { signedPrekeyId, oneTimePrekeyId, kemPrekeyId } = envelope;
    const [signedPrekey, oneTimePrekey, kemOneTime, kemLastResort] = await Promise.all([
      this.#store.prekey('signed', signedPrekeyId),
      oneTimePrekeyId === 0 ? undefined : this.#store.prekey('one-time', oneTimePrekeyId),
      this.#store.prekey('kem-one-time', kemPrekeyId),
      this.#store.prekey('kem-last-resort', kemPrekeyId),
    ]);
    return {
      opener: {
        userId: own.userId,
        deviceId: own.deviceId,
        identityKey: own.identityKey,
        signingKey: own.signingKey.publicKey,
        signedPrekey: signedPrekey?.keyPair,
        oneTimePrekey: oneTimePrekey?.keyPair,
        kemPrekey: (kemOneTime ?? kemLastResort)?.keyPair,
      },
      spent: [oneTimePrekey, kemOneTime].filter((prekey) => prekey !== undefined),
    };
  }
}

function registeredDevice(stored: StoredDevice | undefined): RegisteredDevice | undefined {
  if (stored?.state !== 'registered' || stored.rootKey === undefined) return undefined;
  const { userId, deviceId, identityKey, signingKey, rootKey } = stored;
  return { userId, deviceId, identityKey, signingKey, rootKey, certificate: certificateOf(stored) };
}

export function certificateOf({ certificate }: StoredDevice): DeviceCertificate {
  if (certificate === undefined) throw new NotRegisteredError();
  return fromBinary(DeviceCertificateSchema, certificate);
}
