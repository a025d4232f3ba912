import type { SessionHeader } from '@keytrail/contracts';
import { parseHeader, type Ref, type Session } from '@keytrail/crypto';
import type { KeyStore, StoredPrekeyKind, StoredSession } from './key-store.ts';

/** A session whose key this device has. */
export interface HeldSession {
  readonly session: Session;
  /** 32 bytes. */
  readonly sessionKey: Uint8Array;
  readonly attempt: number;
  readonly sealer: Ref;
}

/** A session that can be read, as the application sees it. */
export interface OpenSession {
  readonly conversationId: string;
  readonly sessionId: string;
  readonly epoch: bigint;
  /** Verified: signed by its initiator, whom the pinned root key certifies. */
  readonly header: SessionHeader;
  /** 32 bytes, SHA-256. */
  readonly headerHash: Uint8Array;
  readonly initiator: Ref;
  /** Who sealed the key to this device. */
  readonly sealer: Ref;
  readonly attempt: number;
  /** Where the key was found this time. */
  readonly origin: 'store' | 'read' | 'recovered';
  readonly traceId: string;
}

const rememberedAtMost = 1_000;

/** Sessions that this device can read: the store, with the parsed ones at hand. */
export class Sessions {
  readonly #store: KeyStore;
  readonly #held = new Map<string, HeldSession>();

  constructor(store: KeyStore) {
    this.#store = store;
  }

  async find(conversationId: string, sessionId: string): Promise<HeldSession | undefined> {
    const key = `${conversationId} ${sessionId}`;
    const known = this.#held.get(key);
    if (known !== undefined) return known;
    const stored = await this.#store.session(conversationId, sessionId);
    return stored && this.#remember(key, stored);
  }

  async ofEpoch(conversationId: string, epoch: bigint): Promise<HeldSession | undefined> {
    const stored = await this.#store.sessionOfEpoch(conversationId, epoch);
    return stored && this.#remember(`${conversationId} ${stored.sessionId}`, stored);
  }

  async save(
    stored: StoredSession,
    spent: readonly { kind: StoredPrekeyKind; keyId: number }[] = [],
  ): Promise<HeldSession> {
    await this.#store.saveSession(stored, spent);
    return this.#remember(`${stored.conversationId} ${stored.sessionId}`, stored);
  }

  #remember(key: string, stored: StoredSession): HeldSession {
    const { sessionKey, attempt, sealer } = stored;
    const held = { session: parseHeader(stored.header), sessionKey, attempt, sealer };
    if (this.#held.size >= rememberedAtMost) this.#held.clear();
    this.#held.set(key, held);
    return held;
  }
}
