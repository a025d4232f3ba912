import { type KeyRequest, KeyRequestRole, KeyRequestState, type KeysWaiting } from '@keytrail/contracts';
import type { Calls } from './calls.ts';
import { cursors } from './cursors.ts';
import type { Emitter } from './emitter.ts';
import { isAboutTheSession } from './errors.ts';
import type { ClientEvents } from './events.ts';
import type { KeyQueue } from './key-queue.ts';
import type { KeyStore } from './key-store.ts';
import { eachOf } from './lanes.ts';
import { Reruns } from './reruns.ts';
import type { Sessions } from './sessions.ts';
import type { Operation, Tracing } from './tracing.ts';

export interface KeyChangesParts {
  readonly calls: Calls;
  readonly store: KeyStore;
  readonly sessions: Sessions;
  readonly tracing: Tracing;
  readonly keyQueue: KeyQueue;
  readonly events: Emitter<ClientEvents>;
  /** Opens a key that nobody waits for. */
  readonly openDelivered: (name: { conversationId: string; sessionId: string }, keyRequestId: string) => Promise<void>;
}

const keysAtOnce = 8;
const changesPerPage = 500;

/** Pulls what became of this device's key requests while it did not hear of it. */
export class KeyChanges {
  readonly #parts: KeyChangesParts;
  readonly #pulls = new Reruns();

  constructor(parts: KeyChangesParts) {
    this.#parts = parts;
  }

  /** One pull at a time; what is said to be there meanwhile is pulled by one more. */
  async pull(signal: AbortSignal, waiting?: KeysWaiting): Promise<void> {
    const cursor = await this.#parts.store.cursor(cursors.keys);
    if (waiting !== undefined && !waiting.changed && cursor !== undefined) return;
    try {
      await this.#pulls.run('', () =>
        this.#parts.tracing.run('pull key changes', { signal }, (operation) => this.#pullPages(operation)),
      );
    } catch (error) {
      // What was delivered is found when it is asked for again, which goes on until it is answered.
      if (!signal.aborted) this.#parts.keyQueue.askAgain();
      throw error;
    }
  }

  async #pullPages(operation: Operation): Promise<void> {
    const { calls, store, keyQueue } = this.#parts;
    let cursor = (await store.cursor(cursors.keys)) ?? '';
    for (let more = true; more; ) {
      const request = { cursor, limit: changesPerPage };
      const page = await calls.call(operation, (options) => calls.session.listKeyChanges(request, options));
      if (page.reset && cursor !== '') keyQueue.askAgain();
      if (cursor === '' || page.reset) {
        // A page that begins anew tells what is open, not what ended before.
        await this.#take(operation, await this.#listed(operation));
      }
      await this.#take(operation, page.requests);
      // Only now: what was not collected is told once more.
      cursor = page.nextCursor;
      await store.saveCursor(cursors.keys, cursor);
      more = page.more;
    }
  }

  async #take(operation: Operation, requests: readonly KeyRequest[]): Promise<void> {
    const { sessions, keyQueue, openDelivered, events } = this.#parts;
    await eachOf(requests, keysAtOnce, async (request) => {
      const { conversationId, sessionId, keyRequestId, state } = request;
      const name = { conversationId, sessionId };
      operation.signal.throwIfAborted();
      if (state === KeyRequestState.FULFILLED) {
        if (keyQueue.wants(name)) await keyQueue.collect(name, operation);
        else if (!(await sessions.find(conversationId, sessionId))) {
          await openDelivered(name, keyRequestId).catch((error: unknown) => {
            // Pulled again, it would be refused again, and nothing behind it would ever be pulled.
            if (!isAboutTheSession(error)) throw error;
            events.emit('fault', { during: 'open delivered key', error });
          });
        }
      } else if (isWithoutKey(state)) keyQueue.ended(request);
    });
  }

  async #listed(operation: Operation): Promise<KeyRequest[]> {
    const { calls } = this.#parts;
    const fulfilled: KeyRequest[] = [];
    let token = '';
    do {
      const request = { role: KeyRequestRole.REQUESTER, includeEnded: true, page: { size: 200, token } };
      const page = await calls.call(operation, (options) => calls.session.listKeyRequests(request, options));
      fulfilled.push(...page.keyRequests.filter(({ state }) => state === KeyRequestState.FULFILLED));
      token = page.nextToken;
    } while (token !== '');
    return fulfilled;
  }
}

function isWithoutKey(state: KeyRequestState): boolean {
  const { EXPIRED, CANCELLED, UNFULFILLABLE } = KeyRequestState;
  return state === EXPIRED || state === CANCELLED || state === UNFULFILLABLE;
}
