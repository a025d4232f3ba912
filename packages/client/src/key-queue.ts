import { type KeyRequest, KeyRequestState } from '@keytrail/contracts';
import type { Calls } from './calls.ts';
import { type Clock, pause } from './clock.ts';
import type { Emitter } from './emitter.ts';
import { isAboutTheSession, KeyMissError, RefusalError, SessionRefusedError } from './errors.ts';
import type { ClientEvents } from './events.ts';
import { type AskedKey, type KeyAsks, keysPerCall, type SessionName } from './key-asks.ts';
import { rejectionReason } from './key-rejection.ts';
import type { KeyStore, StoredWantedKey } from './key-store.ts';
import { Lanes } from './lanes.ts';
import type { SessionReader } from './read-session.ts';
import type { HeldSession, Sessions } from './sessions.ts';
import { type Operation, type OperationSettings, type Tracing, traceIdOf } from './tracing.ts';

export interface KeyQueueParts {
  readonly calls: Calls;
  readonly store: KeyStore;
  readonly sessions: Sessions;
  readonly asks: KeyAsks;
  readonly reader: SessionReader;
  readonly events: Emitter<ClientEvents>;
  readonly clock: Clock;
  readonly tracing: Tracing;
  readonly background: (during: string, work: Promise<unknown>) => void;
  /** Whether all sessions are looked through, once, for those whose keys this device lacks. */
  readonly recoverHistory: boolean;
}

/** A key that this device lacks, and how far it is. */
interface Wanted {
  stored: StoredWantedKey;
  /** A request stands. */
  asked: boolean;
  /** Milliseconds by the clock, before which it is not asked for again. */
  notBefore: number;
  /** Envelopes up to this attempt are of no use. */
  upTo: number;
  /** How often an envelope did not help. */
  failures: number;
  /** How often it could not be read, without a word about the key. */
  unread: number;
}

const sessionsPerPage = 200;
const readsAtOnce = 8;
const failuresAtMost = 5;
const firstWaitMs = 1_000;
const longestWaitMs = 60_000;
/** Set when all sessions were looked through. */
const historyCursor = 'history';

/**
 * The keys that this device lacks: kept in the store, asked for many at a time, what the user looks at first, and collected as they come. Each
 * ends with a key, or with an event that says why there is none.
 */
export class KeyQueue {
  readonly #parts: KeyQueueParts;
  readonly #wanted = new Map<string, Wanted>();
  readonly #reads: Lanes<{ name: SessionName; within: OperationSettings['within'] }>;
  #loaded: Promise<void> | undefined;
  #signal: AbortSignal | undefined;
  #pumping: Promise<void> | undefined;
  #resting: AbortController | undefined;
  #forgetting: Promise<void> | undefined;
  #forgotten: SessionName[] = [];
  #delivered = 0;
  #refused = 0;

  constructor(parts: KeyQueueParts) {
    this.#parts = parts;
    this.#reads = new Lanes({
      // Each session is a lane: many at a time, and none twice at once.
      atOnce: readsAtOnce,
      batchOf: 1,
      isUrgent: () => false,
      work: ([read]) => (read === undefined ? Promise.resolve() : this.#read(read.name, read.within)),
    });
    parts.events.on('keyDelivered', (name) => this.#finish(name, 'delivered'));
  }

  /** Takes up what an earlier process left, and looks for keys that are missing; until the signal. */
  async attached(signal: AbortSignal): Promise<void> {
    this.#signal = signal;
    await this.#load();
    this.#pump();
    if (this.#parts.recoverHistory) await this.#lookUntilThrough(signal);
  }

  /** What this device believes of others has changed: sessions that it refused may be good now. */
  async lookAgain(): Promise<void> {
    const signal = this.#signal;
    await this.#parts.store.saveCursor(historyCursor, undefined);
    if (signal !== undefined && !signal.aborted && this.#parts.recoverHistory) await this.#lookUntilThrough(signal);
  }

  wants({ conversationId, sessionId }: SessionName): boolean {
    return this.#wanted.has(keyOf({ conversationId, sessionId }));
  }

  /** Somebody waits for this key: it goes first, also after a restart. */
  raise(name: SessionName): void {
    const wanted = this.#wanted.get(keyOf(name));
    if (wanted === undefined || wanted.stored.priority === 'FOREGROUND') return;
    wanted.stored = { ...wanted.stored, priority: 'FOREGROUND' };
    // Whoever waits asks for it as such.
    this.#parts.background('keep wanted keys', this.#parts.store.saveWantedKeys([wanted.stored]));
  }

  /** A key of the queue was delivered, so it is said. */
  collect(name: SessionName, within?: OperationSettings['within']): Promise<void> {
    return this.#reads.add(keyOf(name), { name, within });
  }

  /** The request of a key ended without one. */
  ended(request: Pick<KeyRequest, 'conversationId' | 'sessionId' | 'keyRequestId' | 'endedBecause'>): void {
    this.#finish(request, 'refused', { reason: request.endedBecause || 'ended', remedy: 'REQUEST_ROTATION' });
  }

  /** Nothing is known of requests any more: what is wanted is asked for again, which is the same request where one stands. */
  askAgain(): void {
    for (const wanted of this.#wanted.values()) wanted.asked = false;
    this.#pump();
  }

  #load(): Promise<void> {
    this.#loaded ??= this.#parts.store.wantedKeys().then(async (stored) => {
      await this.#want(stored);
    });
    return this.#loaded;
  }

  /** Takes in what is not held already. */
  async #want(keys: readonly StoredWantedKey[]): Promise<StoredWantedKey[]> {
    const taken: StoredWantedKey[] = [];
    for (const stored of keys) {
      if (this.wants(stored)) continue;
      if (await this.#parts.sessions.find(stored.conversationId, stored.sessionId)) this.#forget(stored);
      else {
        this.#wanted.set(keyOf(stored), { stored, asked: false, notBefore: 0, upTo: -1, failures: 0, unread: 0 });
        taken.push(stored);
      }
    }
    return taken;
  }

  async #lookUntilThrough(signal: AbortSignal): Promise<void> {
    const { clock, calls, events } = this.#parts;
    for (let failures = 0; ; failures += 1) {
      try {
        return await this.#lookThroughHistory(signal);
      } catch (error) {
        signal.throwIfAborted();
        events.emit('fault', { during: 'look for keys', error });
        await pause(clock, calls.jittered(waitAfter(failures)), signal, true);
      }
    }
  }

  async #lookThroughHistory(signal: AbortSignal): Promise<void> {
    const { calls, store, tracing, clock } = this.#parts;
    if ((await store.cursor(historyCursor)) !== undefined) return;
    await tracing.run('look through history', { signal }, async (operation) => {
      let token = '';
      do {
        const request = { page: { size: sessionsPerPage, token } };
        const page = await calls.call(operation, (options) => calls.conversation.listSessions(request, options));
        const since = clock.now();
        const missing = page.sessions.map(({ conversationId, sessionId }) => {
          return { conversationId, sessionId, kind: 'MISSING', priority: 'BACKGROUND', since } as const;
        });
        // In the store before anybody is asked: from here on they are not forgotten.
        await store.saveWantedKeys(await this.#want(missing));
        this.#pump();
        token = page.nextToken;
      } while (token !== '');
      await store.saveCursor(historyCursor, 'looked through');
    });
  }

  /** Until the time is over or more is wanted. */
  async #rest(ms: number, signal: AbortSignal): Promise<void> {
    const rest = new AbortController();
    this.#resting = rest;
    try {
      await pause(this.#parts.clock, ms, AbortSignal.any([signal, rest.signal]), true);
    } catch {
      signal.throwIfAborted();
    } finally {
      this.#resting = undefined;
    }
  }

  #pump(): void {
    this.#resting?.abort();
    const signal = this.#signal;
    if (signal === undefined || signal.aborted || this.#pumping !== undefined) return;
    const pumping = this.#askAll(signal).finally(() => {
      this.#pumping = undefined;
      // Attached again, or more wanted, in the moment in which the last one went.
      if ([...this.#wanted.values()].some(({ asked }) => !asked)) this.#pump();
    });
    this.#pumping = pumping;
    this.#parts.background(
      'ask for keys',
      pumping.catch((error: unknown) => {
        if (!signal.aborted) throw error;
      }),
    );
  }

  async #askAll(signal: AbortSignal): Promise<void> {
    const { clock, calls } = this.#parts;
    for (let failures = 0; ; ) {
      const unasked = [...this.#wanted.values()].filter(({ asked }) => !asked);
      if (unasked.length === 0) return;
      const now = clock.now().getTime();
      const due = unasked.filter(({ notBefore }) => notBefore <= now);
      if (due.length === 0) {
        const waitMs = Math.min(...unasked.map(({ notBefore }) => notBefore)) - now;
        await this.#rest(Math.min(waitMs, longestWaitMs), signal);
        continue;
      }
      const first = due.filter(({ stored }) => stored.priority === 'FOREGROUND');
      const rest = due.filter(({ stored }) => stored.priority !== 'FOREGROUND');
      try {
        await this.#parts.tracing.run('ask for keys', { signal }, (operation) =>
          this.#ask(operation, [...first, ...rest].slice(0, keysPerCall)),
        );
        failures = 0;
      } catch (error) {
        signal.throwIfAborted();
        // Nobody decided about the keys: they stay wanted.
        const waitMs = waitAfter(failures);
        const retryAfterMs = error instanceof RefusalError ? error.retryAfterMs : undefined;
        if (retryAfterMs === undefined) this.#parts.events.emit('fault', { during: 'ask for keys', error });
        failures += 1;
        await pause(clock, Math.max(retryAfterMs ?? 0, calls.jittered(waitMs)), signal, true);
      }
    }
  }

  async #ask(operation: Operation, keys: readonly Wanted[]): Promise<void> {
    const results = await this.#parts.asks.many(
      operation,
      keys.map(({ stored }) => stored),
    );
    for (const [i, wanted] of keys.entries()) {
      const result = results[i];
      if (result instanceof Error) this.#refusedToAsk(wanted, result);
      else if (result !== undefined) this.#asked(wanted, result);
    }
  }

  #asked(wanted: Wanted, { keyRequest, recovery, remedy }: AskedKey): void {
    wanted.asked = true;
    if (recovery === 'NO_HOLDER_EXISTS' || recovery === 'NOT_PERMITTED' || keyRequest === undefined) {
      const reason = keyRequest?.endedBecause || recovery;
      this.#finish(wanted.stored, 'refused', { reason, remedy });
    } else if (keyRequest.state === KeyRequestState.FULFILLED) this.#collect(wanted.stored);
  }

  #refusedToAsk(wanted: Wanted, error: KeyMissError | RefusalError): void {
    const { clock } = this.#parts;
    if (error instanceof RefusalError && error.reason === 'KEY_REQUEST_NOT_NEEDED') {
      wanted.asked = true;
      this.#collect(wanted.stored);
    } else if (
      error instanceof RefusalError &&
      (error.retryAfterMs !== undefined || error.reason === 'LIMIT_EXCEEDED')
    ) {
      wanted.notBefore = clock.now().getTime() + (error.retryAfterMs ?? firstWaitMs);
    } else this.#refuse(wanted.stored, error);
  }

  #collect(name: SessionName): void {
    this.#parts.background('collect key', this.collect(name));
  }

  async #read(name: SessionName, within: OperationSettings['within']): Promise<void> {
    const wanted = this.#wanted.get(keyOf(name));
    const signal = this.#signal;
    if (wanted === undefined || signal === undefined || signal.aborted) return;
    const { conversationId, sessionId } = name;
    await this.#parts.tracing.run('collect key', { within, signal }, async (operation) => {
      try {
        // Somebody may have opened it, and found it there.
        const found = await this.#parts.sessions.find(conversationId, sessionId);
        if (found !== undefined) return this.#deliver(operation, name, found);
        const outcome = await this.#parts.reader.read(operation, conversationId, sessionId, wanted.upTo);
        if (outcome.kind === 'held') return this.#deliver(operation, name, outcome.held);
        if (outcome.kind === 'stale') return;
        wanted.failures += 1;
        const miss = outcome.kind === 'miss' ? outcome.miss : missOfEnvelope(name, outcome, traceIdOf(operation));
        if (wanted.failures > failuresAtMost) return this.#refuse(name, miss, 'too_many_wrong_envelopes');
        if (outcome.kind === 'wrong') await this.#reject(operation, wanted, outcome);
        else await this.#askOtherwise(wanted, miss, outcome.kind === 'unopenable' ? outcome.attempt : undefined);
      } catch (error) {
        signal.throwIfAborted();
        if (isAboutTheSession(error)) return this.#refuse(name, error);
        // Not reached, or not let: what was delivered is found when it is asked for again.
        const notBefore = this.#parts.clock.now().getTime() + waitAfter(wanted.unread);
        Object.assign(wanted, { asked: false, notBefore, unread: wanted.unread + 1 });
        this.#pump();
        throw error;
      }
    });
  }

  async #reject(
    operation: Operation,
    wanted: Wanted,
    { attempt, problem }: { attempt: number; problem: Parameters<typeof rejectionReason>[0] },
  ): Promise<void> {
    const { conversationId, sessionId, priority } = wanted.stored;
    const name = { conversationId, sessionId };
    wanted.upTo = attempt;
    this.#asked(wanted, await this.#parts.asks.reject(operation, name, attempt, rejectionReason(problem), priority));
  }

  /** The key has to be asked for (once more): there is no envelope, or its prekeys are gone. */
  async #askOtherwise(wanted: Wanted, miss: KeyMissError, unopenable: number | undefined): Promise<void> {
    if (unopenable !== undefined) {
      wanted.upTo = unopenable;
      wanted.stored = { ...wanted.stored, kind: 'REWRAP' };
      await this.#parts.store.saveWantedKeys([wanted.stored]);
    } else if (miss.recovery === 'NOT_PERMITTED' || miss.recovery === 'NO_HOLDER_EXISTS') {
      this.#refuse(wanted.stored, miss);
      return;
    }
    wanted.asked = false;
    this.#pump();
  }

  async #deliver(operation: Operation, name: SessionName, { attempt, sealer }: HeldSession): Promise<void> {
    const { calls, events } = this.#parts;
    if (!this.wants(name)) return;
    events.emit('keyDelivered', { ...name, keyRequestId: undefined, sealer, attempt });
    // The key is in hand: who detaches or closes now lets this out first.
    const acknowledging = { ...operation, signal: new AbortController().signal };
    await calls.call(acknowledging, (options) => calls.session.ackKey({ ...name, attempt }, options));
  }

  #refuse(name: SessionName, error: Error, because?: string): void {
    this.#finish(name, 'refused', {
      reason: because ?? reasonOf(error),
      remedy: error instanceof KeyMissError ? error.remedy : 'NONE',
      error,
    });
  }

  #finish(
    { conversationId, sessionId }: SessionName,
    how: 'delivered' | 'refused',
    why?: Pick<ClientEvents['keyRefused'], 'reason' | 'remedy' | 'error'>,
  ): void {
    const { events } = this.#parts;
    const name = { conversationId, sessionId };
    if (!this.#wanted.delete(keyOf(name))) return;
    this.#forget(name);
    if (how === 'delivered') this.#delivered += 1;
    else this.#refused += 1;
    if (why !== undefined) events.emit('keyRefused', { ...name, ...why });
    const left = this.#wanted.size;
    events.emit('keysWanted', { left, delivered: this.#delivered, refused: this.#refused });
    if (left === 0) [this.#delivered, this.#refused] = [0, 0];
  }

  /** Out of the store, with others that end at the same time. */
  #forget({ conversationId, sessionId }: SessionName): void {
    this.#forgotten.push({ conversationId, sessionId });
    this.#forgetting ??= this.#forgetAll().finally(() => {
      this.#forgetting = undefined;
    });
    this.#parts.background('forget wanted keys', this.#forgetting);
  }

  async #forgetAll(): Promise<void> {
    await Promise.resolve();
    while (this.#forgotten.length > 0) {
      const names = this.#forgotten;
      this.#forgotten = [];
      await this.#parts.store.removeWantedKeys(names);
    }
  }
}

function waitAfter(failures: number): number {
  return Math.min(firstWaitMs * 2 ** failures, longestWaitMs);
}

function reasonOf(error: Error): string {
  if (error instanceof KeyMissError) return error.cause;
  if (error instanceof RefusalError) return error.reason;
  if (error instanceof SessionRefusedError) return error.problem;
  return error.name;
}

function missOfEnvelope(
  name: SessionName,
  { kind, attempt, problem }: { kind: 'wrong' | 'unopenable'; attempt: number; problem: string },
  traceId: string,
): KeyMissError {
  return new KeyMissError(name, {
    cause: kind === 'wrong' ? 'ENVELOPE_WRONG' : 'ENVELOPE_UNOPENABLE',
    recovery: 'REQUESTABLE',
    remedy: 'REQUEST_ROTATION',
    evidence: { attempt: String(attempt), problem },
    traceId,
  });
}

function keyOf({ conversationId, sessionId }: SessionName): string {
  return `${conversationId} ${sessionId}`;
}
