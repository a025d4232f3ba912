import type { ConversationsWaiting, Message } from '@keytrail/contracts';
import { cursors } from './cursors.ts';
import { isAboutTheSession, isDecided, RefusalError } from './errors.ts';
import type { StoredReceived, StoredUnread } from './key-store.ts';
import { eachOf } from './lanes.ts';
import { decryptMessages, listMessages, type MessageParts, type ReadMessage, readMessages } from './messages.ts';
import { hasCounter, withCounter } from './received-counters.ts';
import { Reruns } from './reruns.ts';

/** A message as it is given to the application. */
export type DeliveredMessage = ReadMessage & {
  readonly conversationId: string;
  /** It was delivered before, without its key, and now again. */
  readonly again: boolean;
};

export type MessageHandler = (message: DeliveredMessage) => void | Promise<void>;

const messagesPerPage = 100;
const changesPerPage = 200;
const conversationsAtOnce = 8;
/** How long the messages of a conversation wait for a key that a holder who is online may bring. */
const patienceMs = 2_000;
/** How soon after a hint it is looked for others that were lost: an idle device looks for none. */
const lookAfterHintMs = 30_000;
const firstWaitMs = 500;
const longestWaitMs = 60_000;

/**
 * Gives every message of every conversation to the application, once and in order, over lost and doubled hints, reconnects and restarts: what
 * counts is how far the store says that it was delivered, and that moves when the handler is through.
 */
export class Inbox {
  readonly #parts: MessageParts;
  readonly #closing: AbortSignal;
  readonly #pulls = new Reruns();
  readonly #deliveries = new Reruns();
  readonly #failures = new Map<string, number>();
  #handler: MessageHandler | undefined;
  #looksAgain = false;
  /** What was delivered without its text, and will not be readable before this device believes others than now. */
  readonly #refused = new Set<string>();
  #opensUnread = false;

  constructor(parts: MessageParts, closing: AbortSignal) {
    this.#parts = parts;
    this.#closing = closing;
  }

  get isWanted(): boolean {
    return this.#handler !== undefined;
  }

  /** @throws when there is a handler already: two would each get some of the messages. */
  handle(handler: MessageHandler): () => void {
    if (this.#handler !== undefined) throw new Error('messages have a handler already');
    this.#handler = handler;
    return () => {
      if (this.#handler === handler) this.#handler = undefined;
    };
  }

  /** A hint that there is something in a conversation. Where one arrives, one of another conversation may have been lost. */
  due(conversationId: string): void {
    if (!this.isWanted) return;
    this.#inBackground(conversationId, () => this.#deliver(conversationId));
    if (this.#looksAgain) return;
    this.#looksAgain = true;
    const look = () => {
      this.#looksAgain = false;
      if (!this.#closing.aborted) this.pullInBackground();
    };
    this.#later(lookAfterHintMs, look);
  }

  /** Not after the client was closed. */
  #later(ms: number, run: () => void): void {
    const { clock, calls } = this.#parts;
    const onTime = () => {
      this.#closing.removeEventListener('abort', callOff);
      run();
    };
    const callOff = clock.after(calls.jittered(ms), onTime, { background: true });
    this.#closing.addEventListener('abort', callOff, { once: true });
  }

  /** Something may have happened that no hint told of. */
  pullInBackground(): void {
    if (this.isWanted) this.#inBackground('', () => this.pull());
  }

  /** What was told with the greeting. */
  async attached(waiting: ConversationsWaiting | undefined): Promise<void> {
    const cursor = await this.#parts.store.cursor(cursors.conversations);
    if (waiting === undefined || waiting.changed || cursor === undefined) this.pullInBackground();
    else if (this.isWanted) await this.#deliverReadable();
  }

  /** What was delivered without this key can be read now. */
  keyArrived(conversationId: string): void {
    if (!this.isWanted) return;
    this.#inBackground(conversationId, async () => {
      if ((await this.#parts.store.unread(conversationId)).length > 0) await this.#deliver(conversationId);
    });
  }

  /** What this device believes of others has changed: what was refused may be good now. */
  trustChanged(): void {
    this.#refused.clear();
    this.#opensUnread = true;
    this.pullInBackground();
  }

  /** Pulls what changed since the last time, and delivers it. */
  pull(): Promise<void> {
    return this.#pulls.run('', async () => {
      await this.#pullChanges();
      if (this.#opensUnread) await this.#openUnread();
      await this.#deliverReadable();
    });
  }

  /** Sessions that were refused have no key here, though there may be an envelope. */
  async #openUnread(): Promise<void> {
    const { store, opener } = this.#parts;
    this.#opensUnread = false;
    const names = new Map((await store.unread()).map((each) => [`${each.conversationId} ${each.sessionId}`, each]));
    try {
      await eachOf([...names.values()], conversationsAtOnce, async (name) => {
        await opener.open(name, { recover: false, signal: this.#closing }).catch((error: unknown) => {
          if (!isAboutTheSession(error)) throw error;
        });
      });
    } catch (error) {
      this.#opensUnread = true;
      throw error;
    }
  }

  async #pullChanges(): Promise<void> {
    const { calls, store, tracing, conversations, events } = this.#parts;
    let cursor = (await store.cursor(cursors.conversations)) ?? '';
    let failed: { error: unknown } | undefined;
    for (let more = true; more; ) {
      const page = await tracing.run('pull conversation changes', { signal: this.#closing }, (operation) =>
        calls.call(operation, (options) => calls.conversation.listChanges({ cursor, limit: changesPerPage }, options)),
      );
      for (const { conversationId } of page.changes) {
        conversations.forget(conversationId);
        events.emit('conversationChanged', { conversationId });
      }
      await eachOf(page.changes, conversationsAtOnce, async ({ conversationId, lastSequence }) => {
        if (((await store.delivered(conversationId)) ?? 0n) < lastSequence) await this.#deliver(conversationId);
      }).catch((error: unknown) => {
        failed ??= { error };
      });
      ({ nextCursor: cursor, more } = page);
      // What could not be delivered is told again.
      if (failed === undefined) await store.saveCursor(cursors.conversations, cursor);
    }
    if (failed !== undefined) throw failed.error;
  }

  /** Keys may have come while nobody looked. */
  async #deliverReadable(): Promise<void> {
    const unread = await this.#parts.store.unread();
    const readable = new Set<string>();
    for (const each of unread) {
      if (!readable.has(each.conversationId) && (await this.#isReadable(each))) readable.add(each.conversationId);
    }
    await eachOf([...readable], conversationsAtOnce, (conversationId) => this.#deliver(conversationId));
  }

  async #isReadable(unread: StoredUnread): Promise<boolean> {
    const { conversationId, sessionId } = unread;
    if (this.#refused.has(nameOf(unread))) return false;
    return (await this.#parts.sessions.find(conversationId, sessionId)) !== undefined;
  }

  #inBackground(name: string, work: () => Promise<void>): void {
    this.#parts.background('deliver messages', this.#orAgain(name, work));
  }

  /** A handler or a service that failed is tried again; nothing is left out meanwhile. */
  async #orAgain(name: string, work: () => Promise<void>): Promise<void> {
    try {
      await work();
      this.#failures.delete(name);
    } catch (error) {
      // Who is revoked gets nothing more.
      if (error instanceof RefusalError && error.reason === 'DEVICE_REVOKED') throw error;
      const failures = (this.#failures.get(name) ?? 0) + 1;
      this.#failures.set(name, failures);
      const again = () => {
        if (this.isWanted && !this.#closing.aborted && this.#failures.get(name) === failures)
          this.#inBackground(name, work);
      };
      this.#later(Math.min(firstWaitMs * 2 ** (failures - 1), longestWaitMs), again);
      throw error;
    }
  }

  #deliver(conversationId: string): Promise<void> {
    return this.#deliveries.run(conversationId, async () => {
      try {
        await this.#deliverUnread(conversationId);
        while (await this.#deliverNew(conversationId));
      } catch (error) {
        // A conversation that this user may not read any more has nothing to deliver.
        if (!(error instanceof RefusalError) || error.reason !== 'NOT_FOUND_OR_NOT_PERMITTED') throw error;
      }
    });
  }

  /** One page; whether there may be more. */
  async #deliverNew(conversationId: string): Promise<boolean> {
    const { store } = this.#parts;
    const after = (await store.delivered(conversationId)) ?? 0n;
    const messages = await this.#read(conversationId, after, messagesPerPage, true);
    for (const message of messages) {
      const { sessionId, sequence } = message;
      if (sequence <= after) continue;
      const received = await this.#giveOnce(conversationId, message, false);
      const unread = isWaiting(message) ? [{ conversationId, sessionId, sequence }] : [];
      await store.saveDelivered(conversationId, sequence, unread, received);
    }
    return messages.length === messagesPerPage;
  }

  /** In the order of their sequences; those whose key is still missing stay. */
  async #deliverUnread(conversationId: string): Promise<void> {
    const readable: StoredUnread[] = [];
    for (const unread of await this.#parts.store.unread(conversationId)) {
      if (await this.#isReadable(unread)) readable.push(unread);
    }
    while (readable[0] !== undefined) {
      const first = readable[0].sequence;
      const page = await this.#list(conversationId, first - 1n);
      const last = page.at(-1)?.sequence ?? first;
      const wanted = readable.splice(0, readable.filter(({ sequence }) => sequence <= last).length);
      const sequences = new Set(wanted.map(({ sequence }) => sequence));
      const messages = await this.#decrypt(
        conversationId,
        page.filter(({ sequence }) => sequences.has(sequence)),
      );
      const bySequence = new Map(messages.map((message) => [message.sequence, message]));
      for (const unread of wanted) await this.#deliverAgain(unread, bySequence.get(unread.sequence));
    }
  }

  async #deliverAgain(unread: StoredUnread, message: ReadMessage | undefined): Promise<void> {
    const { store, events } = this.#parts;
    const { conversationId, sequence } = unread;
    if (message !== undefined && isWaiting(message)) {
      this.#refused.add(nameOf(unread));
      return;
    }
    const received = message && (await this.#giveOnce(conversationId, message, true));
    await store.removeUnread([unread], received);
    if (received) events.emit('messageReadable', { conversationId, sequence });
  }

  #list(conversationId: string, after: bigint): Promise<Message[]> {
    return this.#parts.tracing.run('deliver messages', { signal: this.#closing }, (operation) =>
      listMessages(this.#parts, operation, conversationId, { after, limit: messagesPerPage }),
    );
  }

  #decrypt(conversationId: string, messages: readonly Message[]): Promise<ReadMessage[]> {
    return this.#parts.tracing.run('deliver messages', { signal: this.#closing }, (operation) =>
      decryptMessages(this.#parts, operation, conversationId, messages, { recover: false }),
    );
  }

  async #read(conversationId: string, after: bigint, limit: number, recover: boolean): Promise<ReadMessage[]> {
    const how = { after, limit, recover, waitForHolder: false, timeoutMs: patienceMs };
    return this.#parts.tracing.run('deliver messages', { signal: this.#closing }, (operation) =>
      readMessages(this.#parts, operation, conversationId, how),
    );
  }

  /**
   * Whoever sent it signed its counter, which it uses once: the same one under another sequence is a repetition by the server. What is received of
   * the sender then; undefined of what could not be read, and of a repetition.
   */
  async #giveOnce(conversationId: string, message: ReadMessage, again: boolean): Promise<StoredReceived | undefined> {
    const { sessionId, sender, senderCounter, sequence } = message;
    if ('error' in message) {
      await this.#give(conversationId, message, again);
      return undefined;
    }
    const { store, events } = this.#parts;
    const counters = (await store.received(conversationId, sessionId, sender))?.counters ?? [];
    if (hasCounter(counters, senderCounter)) {
      events.emit('messageRepeated', { conversationId, sequence, sender });
      return undefined;
    }
    await this.#give(conversationId, message, again);
    return { conversationId, sessionId, sender, counters: withCounter(counters, senderCounter) };
  }

  async #give(conversationId: string, message: ReadMessage, again: boolean): Promise<void> {
    // Nobody knows yet whether it can be read: it is not given without its text, and nothing behind it before it.
    if ('error' in message && isUndecided(message.error)) throw message.error;
    this.#closing.throwIfAborted();
    const handler = this.#handler;
    if (handler === undefined) throw new Error('the handler of messages was taken off');
    await handler({ ...message, conversationId, again });
  }
}

function isUndecided(error: Error): boolean {
  return error instanceof RefusalError && !isDecided(error);
}

/** Its key may come yet, or what the device believes of its sender may change. */
function isWaiting(message: ReadMessage): boolean {
  return 'error' in message && isAboutTheSession(message.error);
}

function nameOf({ conversationId, sequence }: StoredUnread): string {
  return `${conversationId} ${sequence}`;
}
