import type { DeviceLogState, KeyPair, Ref, RosterState } from '@keytrail/crypto';
import type { CounterRanges } from './received-counters.ts';

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

/** A key that this device wants and does not have: asked for, or to be asked for when the servers can be reached. */
export interface StoredWantedKey {
  readonly conversationId: string;
  readonly sessionId: string;
  readonly kind: 'MISSING' | 'REWRAP';
  readonly priority: 'FOREGROUND' | 'BACKGROUND';
  /** Since when it is wanted, by the clock of this device. */
  readonly since: Date;
}

/** A wanted key by its session: there is one at most. */
export interface WantedKeyName {
  readonly conversationId: string;
  readonly sessionId: string;
}

/** A message that waits to be sent. */
export interface StoredOutgoing {
  readonly id: string;
  /** Messages are sent in ascending order; no two of a store have the same. */
  readonly position: bigint;
  readonly conversationId: string;
  readonly plaintext: Uint8Array;
  /** By the clock of this device. */
  readonly enqueuedAt: Date;
  /** The serialized request, from before it was first sent: sent again, it is the same. */
  readonly request?: Uint8Array;
}

/** A message that was delivered without its key, and will be delivered again when it can be read. */
export interface StoredUnread {
  readonly conversationId: string;
  readonly sessionId: string;
  readonly sequence: bigint;
}

/** Which of a sender's messages under a session were delivered, by its counters. */
export interface StoredReceived {
  readonly conversationId: string;
  readonly sessionId: string;
  readonly sender: Ref;
  readonly counters: CounterRanges;
}

/**
 * What a device must remember. Each method is atomic and durable when its promise resolves; calls may overlap. What is given to it and
 * what it returns are copies: changing them later does not change the store. Two clients must not use one store at the same time.
 * `keyStoreConformance` checks a store.
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

  /** The roster of a conversation as it was saved last. A store that loses it cannot notice that the server goes back. */
  rosterLog(conversationId: string): Promise<RosterState | undefined>;
  saveRosterLog(state: RosterState): Promise<void>;

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

  /** Where this device stands in something that it pulls; `saveCursor` with undefined forgets it. */
  cursor(name: string): Promise<string | undefined>;
  saveCursor(name: string, cursor: string | undefined): Promise<void>;

  /** All of them, the longest wanted first. */
  wantedKeys(): Promise<StoredWantedKey[]>;
  /** Each takes the place of the one of the same session. */
  saveWantedKeys(keys: readonly StoredWantedKey[]): Promise<void>;
  removeWantedKeys(names: readonly WantedKeyName[]): Promise<void>;

  /** All of them, in ascending order of their positions. */
  outgoing(): Promise<StoredOutgoing[]>;
  /** Takes the place of the one with the same id. */
  saveOutgoing(message: StoredOutgoing): Promise<void>;
  removeOutgoing(id: string): Promise<void>;

  /** All of a conversation, in ascending order of their sequences; of every conversation without one. */
  unread(conversationId?: string): Promise<StoredUnread[]>;
  /**
   * Where the messages of a conversation were delivered up to, those among them that could not be read, and what is received of the sender then:
   * all of it or nothing.
   */
  saveDelivered(
    conversationId: string,
    sequence: bigint,
    unread: readonly StoredUnread[],
    received?: StoredReceived,
  ): Promise<void>;
  /** The last sequence of `saveDelivered`. */
  delivered(conversationId: string): Promise<bigint | undefined>;
  /** Forgets them, and keeps what is received of the sender then, both or neither. */
  removeUnread(messages: readonly StoredUnread[], received?: StoredReceived): Promise<void>;
  received(conversationId: string, sessionId: string, sender: Ref): Promise<StoredReceived | undefined>;
}
