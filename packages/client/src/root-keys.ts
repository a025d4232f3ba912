import { type Ref, rootKeyChangeIn } from '@keytrail/crypto';
import { equalBytes, toHex } from './bytes.ts';
import type { Emitter } from './emitter.ts';
import type { ClientEvents } from './events.ts';
import type { KeyStore } from './key-store.ts';

export interface RootKeyChange {
  readonly userId: string;
  /** 32 bytes, Ed25519: the one that this device trusts. */
  readonly pinned: Uint8Array;
  /** 32 bytes, Ed25519: the one that came. */
  readonly offered: Uint8Array;
  /**
   * What the user's verified device log says. `signed`: each root key from the pinned one on signed for the next. `reset`: somewhere there is
   * only the server's word for it. `unknown`: the log that was seen does not tell of it.
   */
  readonly how: 'signed' | 'reset' | 'unknown';
}

export interface RootKeyPolicy {
  /** Asked once for each new root key. A person should have compared the keys before it says `accept`. */
  onChange(change: RootKeyChange): 'accept' | 'refuse' | Promise<'accept' | 'refuse'>;
}

/** Accepts what the root key before signed, and refuses all else. Whoever has stolen a root key can sign, too. */
export const acceptSignedRootKeyChanges: RootKeyPolicy = {
  onChange: ({ how }) => (how === 'signed' ? 'accept' : 'refuse'),
};

export type RootKeyVerdict =
  | { readonly trusted: true; readonly rootKey: Uint8Array }
  | { readonly trusted: false; readonly pinned: Uint8Array };

/** Root keys of users as this device has pinned them: the first is trusted, a change is the application's decision. */
export class RootKeys {
  readonly #store: KeyStore;
  readonly #own: Ref;
  readonly #policy: RootKeyPolicy;
  readonly #events: Emitter<ClientEvents>;
  readonly #pins = new Map<string, Uint8Array>();
  readonly #asked = new Map<string, Promise<void>>();

  constructor(parts: { store: KeyStore; own: Ref; policy: RootKeyPolicy | undefined; events: Emitter<ClientEvents> }) {
    this.#store = parts.store;
    this.#own = parts.own;
    this.#policy = parts.policy ?? { onChange: () => 'refuse' };
    this.#events = parts.events;
  }

  async pinned(userId: string): Promise<Uint8Array | undefined> {
    const known = this.#pins.get(userId);
    if (known !== undefined) return known;
    const stored = await this.#store.pin(userId);
    if (stored !== undefined) this.#pins.set(userId, stored);
    return stored;
  }

  /**
   * Whether a root key that somebody says is this user's may be used. At first contact it may, and is pinned by `confirm`, once something that
   * it signed has been verified.
   */
  async judge(userId: string, offered: Uint8Array): Promise<RootKeyVerdict> {
    const pinned = await this.pinned(userId);
    if (pinned === undefined) return { trusted: true, rootKey: offered };
    if (equalBytes(pinned, offered)) return { trusted: true, rootKey: pinned };
    const log = await this.#store.deviceLog(userId);
    const how = (log && rootKeyChangeIn(log, pinned, offered)) ?? 'unknown';
    await this.#decide({ userId, pinned, offered, how });
    // A person may have decided otherwise meanwhile.
    const trusted = (await this.pinned(userId)) ?? pinned;
    return equalBytes(trusted, offered) ? { trusted: true, rootKey: offered } : { trusted: false, pinned: trusted };
  }

  /** Pins a root key whose signature has been verified, unless one is pinned; false when that is another one. */
  async confirm(userId: string, rootKey: Uint8Array): Promise<boolean> {
    const pinned = (await this.pinned(userId)) ?? (await this.#pinFirst(userId, rootKey));
    return equalBytes(pinned, rootKey);
  }

  /** Whatever was decided about the user before is over. */
  async accept(userId: string, rootKey: Uint8Array): Promise<void> {
    for (const key of this.#asked.keys()) if (key.startsWith(`${userId} `)) this.#asked.delete(key);
    await this.#store.replacePin(userId, rootKey);
    this.#pins.set(userId, rootKey);
  }

  async #pinFirst(userId: string, offered: Uint8Array): Promise<Uint8Array> {
    const pinned = await this.#store.pinFirst(userId, offered);
    this.#pins.set(userId, pinned);
    return pinned;
  }

  #decide(change: RootKeyChange): Promise<void> {
    // The own user's root key is here: whoever shows another one is wrong.
    const isOwn = change.userId === this.#own.userId;
    const key = `${change.userId} ${toHex(change.pinned)} ${toHex(change.offered)} ${change.how}`;
    const asked = this.#asked.get(key) ?? this.#ask(change, isOwn);
    this.#asked.set(key, asked);
    asked.catch(() => this.#asked.delete(key));
    return asked;
  }

  async #ask(change: RootKeyChange, isOwn: boolean): Promise<void> {
    const wanted = !isOwn && (await this.#policy.onChange(change)) === 'accept';
    // While the policy was asked, a person may have accepted another one.
    const accepted = wanted && equalBytes((await this.pinned(change.userId)) ?? change.pinned, change.pinned);
    if (accepted) await this.accept(change.userId, change.offered);
    this.#events.emit('rootKeyChanged', { ...change, accepted });
  }
}
