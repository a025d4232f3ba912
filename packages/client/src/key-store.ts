import type { DeviceLogState, KeyPair, Ref } from '@keytrail/crypto';

/** The long-term keys of this device. Plain data, so that a store can keep it as it likes. */
export interface StoredDevice extends Ref {
  /** `made`: not yet registered. */
  readonly state: 'made' | 'registered';
  readonly identityKey: KeyPair;
  readonly signingKey: KeyPair;
  /** The user's; absent until another device approved this one. */
  readonly rootKey?: KeyPair;
  /** A serialized DeviceCertificate; absent as long as the root key is. */
  readonly certificate?: Uint8Array;
  readonly signedPrekeyId: number;
  readonly lastResortPrekeyId: number;
  /** 32 bytes; shown with the link request, until it was approved. */
  readonly linkSecret?: Uint8Array;
  /** The last-resort prekey in the link request; absent where it is the current one. */
  readonly linkPrekeyId?: number;
}

export type StoredPrekeyKind = 'signed' | 'one-time' | 'kem-one-time' | 'kem-last-resort';

export interface PrekeyName {
  readonly kind: StoredPrekeyKind;
  readonly keyId: number;
}

export interface StoredPrekey extends PrekeyName {
  readonly keyPair: KeyPair;
  /** When it was made, by the clock of this device; absent where nobody knows. */
  readonly madeAt?: Date;
  /** It is not handed out any more, and only envelopes that are on their way may still need it until then. */
  readonly keepUntil?: Date;
}

/** A hash of a device log's entry that an answer named. */
export interface ToldHead {
  readonly version: bigint;
  /** 32 bytes. */
  readonly head: Uint8Array;
}

/** What was seen of a user's device log: verified, and the heads beyond it that were only told. */
export interface StoredDeviceLog extends DeviceLogState {
  readonly toldHeads: readonly ToldHead[];
}

/** A session that this device can read. */
export interface StoredSession {
  readonly conversationId: string;
  readonly sessionId: string;
  readonly epoch: bigint;
  /** The header as its initiator serialized it, verified before it came here. */
  readonly header: Uint8Array;
  /** 64 bytes. */
  readonly headerSignature: Uint8Array;
  /** 32 bytes. */
  readonly sessionKey: Uint8Array;
  /** Of the envelope that the key came in. */
  readonly attempt: number;
  /** Who sealed that envelope; this device itself for sessions that it made. */
  readonly sealer: Ref;
}

/** A mutation that was prepared and has not been answered: sent again, it is the same. */
export interface StoredPending {
  /** The serialized request. */
  readonly content: Uint8Array;
  /** The secret that belongs to it, if any. */
  readonly secret?: Uint8Array;
}

/**
 * What a device must remember. Each method is atomic and durable when its promise resolves; calls may overlap. Two clients must not
 * use one store at the same time. `keyStoreConformance` checks a store.
 */
export interface KeyStore {
  device(): Promise<StoredDevice | undefined>;
  saveDevice(device: StoredDevice): Promise<void>;

  prekey(kind: StoredPrekeyKind, keyId: number): Promise<StoredPrekey | undefined>;
  savePrekeys(prekeys: readonly StoredPrekey[]): Promise<void>;
  /** All of a kind, in ascending order of their ids. */
  prekeys(kind: StoredPrekeyKind): Promise<StoredPrekey[]>;
  /** Sets `keepUntil` where there is such a prekey, and never brings back one that was forgotten. */
  keepPrekeysUntil(prekeys: readonly PrekeyName[], until: Date): Promise<void>;
  /** Forgets the private keys for good. */
  removePrekeys(prekeys: readonly PrekeyName[]): Promise<void>;

  /** The root key pinned for a user: 32 bytes, Ed25519. */
  pin(userId: string): Promise<Uint8Array | undefined>;
  /** Pins unless one is pinned already; returns the one that is pinned then. */
  pinFirst(userId: string, rootKey: Uint8Array): Promise<Uint8Array>;
  replacePin(userId: string, rootKey: Uint8Array): Promise<void>;

  /** The log of a user as it was saved last. A store that loses it cannot notice that the server goes back. */
  deviceLog(userId: string): Promise<StoredDeviceLog | undefined>;
  saveDeviceLog(log: StoredDeviceLog): Promise<void>;

  session(conversationId: string, sessionId: string): Promise<StoredSession | undefined>;
  sessionOfEpoch(conversationId: string, epoch: bigint): Promise<StoredSession | undefined>;
  /** Keeps a session and forgets the one-time prekeys that its envelope spent, both or neither. */
  saveSession(session: StoredSession, spent: readonly PrekeyName[]): Promise<void>;

  /** For each device, whether this one has sealed to it before. */
  sealedTo(devices: readonly Ref[]): Promise<boolean[]>;
  addSealedTo(devices: readonly Ref[]): Promise<void>;

  /** Takes `count` numbers of a counter, for ever: returns the first. Counters start at 0. */
  reserve(counter: string, count: number): Promise<bigint>;

  pending(name: string): Promise<StoredPending | undefined>;
  savePending(name: string, pending: StoredPending): Promise<void>;
  removePending(name: string): Promise<void>;
}
