import { type KeyRequest, KeyRequestRole, KeyRequestState } from '@keytrail/contracts';
import type { EnvelopeProblem } from '@keytrail/crypto';
import { type Clock, pause } from './clock.ts';
import type { Emitter } from './emitter.ts';
import { KeyMissError, RefusalError } from './errors.ts';
import type { ClientEvents } from './events.ts';
import { Flights } from './flights.ts';
import { Hints, type Watch } from './hints.ts';
import type { AskedKey, KeyAsks, SessionName } from './key-asks.ts';
import { rejectionReason } from './key-rejection.ts';
import type { ReadingParts, ReadOutcome, SessionReader } from './read-session.ts';
import type { HeldSession, OpenSession } from './sessions.ts';
import type { SpanAttributes } from './span-attributes.ts';
import { type Operation, type OperationSettings, type Tracing, traceIdOf } from './tracing.ts';

export interface OpenOptions {
  /** Ask for a key that is missing; true by default. */
  readonly recover?: boolean;
  /** Go on waiting while no holder is online; true by default. */
  readonly waitForHolder?: boolean;
  /** 30000 by default. */
  readonly timeoutMs?: number;
  readonly signal?: AbortSignal;
}

export interface OpeningParts extends ReadingParts {
  readonly reader: SessionReader;
  readonly asks: KeyAsks;
  /** Somebody waits for a key that is missing. */
  readonly onMissing?: (name: SessionName) => void;
  readonly tracing: Tracing;
  readonly events: Emitter<ClientEvents>;
  readonly clock: Clock;
  readonly isAttached: () => boolean;
  readonly background: (during: string, work: Promise<unknown>) => void;
}

/** What a recovery knows: the envelope that is of no use, and how the key request stands. */
interface Pursuit {
  readonly name: SessionName;
  miss: KeyMissError;
  /** Of the request; or what is wrong with the envelope that there is. */
  want: 'MISSING' | 'REWRAP' | { readonly wrong: EnvelopeProblem };
  /** Envelopes up to this attempt are of no use. */
  upTo: number;
  keyRequestId: string | undefined;
}

const rejectionsAtMost = 5;
const defaultTimeoutMs = 30_000;
/** How soon to ask again without a hint: often when nobody will tell us, seldom when the stream will. */
const detachedPollMs = 50;
const attachedPollMs = 2_000;
const longestPollMs = 10_000;

/** Sessions by name: from the store, else read and verified, else asked for and waited for. */
export class SessionOpener {
  readonly hints = new Hints();
  readonly #parts: OpeningParts;
  readonly #reads = new Flights<ReadOutcome>();
  readonly #recoveries = new Flights<HeldSession>();

  constructor(parts: OpeningParts) {
    this.#parts = parts;
  }

  /**
   * @throws KeyMissError, SessionRefusedError, RefusalError, NotRegisteredError, or the signal's reason.
   */
  open(
    name: SessionName,
    options: OpenOptions = {},
    within?: OperationSettings['within'],
  ): Promise<{ held: HeldSession; open: OpenSession }> {
    const attributes: SpanAttributes = {
      'keytrail.conversation.id': name.conversationId,
      'keytrail.session.id': name.sessionId,
    };
    const settings = { within, attributes, ...(options.signal && { signal: options.signal }) };
    return this.#parts.tracing.run('open session', settings, async (operation) => {
      options.signal?.throwIfAborted();
      const stored = await this.#parts.sessions.find(name.conversationId, name.sessionId);
      if (stored) return opened(stored, 'store', operation);
      await this.#parts.own.registered();

      const outcome = await this.#reads.join(keyOf(name), options.signal, (signal) =>
        this.#parts.reader.read({ ...operation, signal }, name.conversationId, name.sessionId),
      );
      if (outcome.kind === 'held') return opened(outcome.held, 'read', operation);
      const pursuit = pursuitOf(name, outcome);
      const given = outcome.kind === 'miss' && pursuit.miss.recovery;
      if (options.recover === false || given === 'NOT_PERMITTED' || given === 'NO_HOLDER_EXISTS') throw pursuit.miss;
      operation.span.setAttributes({ 'keytrail.miss': true, 'keytrail.miss.cause': pursuit.miss.cause });
      return opened(await this.#recover(operation, pursuit, options), 'recovered', operation);
    });
  }

  /** A notification about a session: wakes those who wait for it. False when nobody does. */
  hint(name: SessionName): boolean {
    return this.hints.wake(keyOf(name));
  }

  /** One recovery per session, whoever waits for it; a caller whose time is up leaves the request standing. */
  async #recover(operation: Operation, pursuit: Pursuit, options: OpenOptions): Promise<HeldSession> {
    const { waitForHolder = true, timeoutMs = defaultTimeoutMs } = options;
    const control = new AbortController();
    const timedOut = Symbol('timed out');
    const callOff = this.#parts.clock.after(timeoutMs, () => control.abort(timedOut), { background: true });
    const signal = options.signal ? AbortSignal.any([options.signal, control.signal]) : control.signal;
    let shared = pursuit;
    try {
      return await this.#recoveries.join(`${keyOf(pursuit.name)} ${waitForHolder}`, signal, (flightSignal) =>
        this.#parts.tracing.run('recover key', { within: { ...operation, signal: flightSignal } }, (recovering) => {
          shared = pursuit;
          return this.#pursue(recovering, pursuit, waitForHolder);
        }),
      );
    } catch (error) {
      if (error !== timedOut) throw error;
      throw shared.miss.with({ timedOut: true, keyRequestId: shared.keyRequestId ?? shared.miss.keyRequestId });
    } finally {
      callOff();
    }
  }

  async #pursue(operation: Operation, pursuit: Pursuit, waitForHolder: boolean): Promise<HeldSession> {
    const { name } = pursuit;
    // Watching starts before asking: the key may be delivered before the answer to the request is here.
    const watch = this.hints.watch(keyOf(name));
    // The queue may collect the same key at the same time: who is first tells it.
    let told = false;
    const off = this.#parts.events.on('keyDelivered', (delivered) => {
      told ||= keyOf(delivered) === keyOf(name);
    });
    try {
      this.#parts.onMissing?.(name);
      await this.#ask(operation, pursuit);
      for (let turn = 0, rejections = 0; ; turn += 1) {
        this.#giveUpIfHopeless(pursuit, waitForHolder);
        await this.#nextLook(operation, watch, pursuit, turn);
        const outcome = await this.#parts.reader.read(operation, name.conversationId, name.sessionId, pursuit.upTo);
        if (outcome.kind === 'held') {
          if (!told) this.#delivered(operation, pursuit, outcome.held);
          return outcome.held;
        }
        if (outcome.kind === 'miss') {
          pursuit.miss = outcome.miss;
          if (outcome.miss.recovery === 'REQUESTABLE') await this.#refuseEnded(operation, pursuit, true);
        } else if (outcome.kind === 'stale') {
          await this.#refuseEnded(operation, pursuit, false);
        } else {
          rejections += 1;
          Object.assign(pursuit, pursuitOf(name, outcome));
          if (rejections > rejectionsAtMost) throw pursuit.miss.with({ endedBecause: 'too_many_wrong_envelopes' });
          await this.#ask(operation, pursuit);
          turn = 0;
        }
      }
    } finally {
      off();
      watch.stop();
    }
  }

  async #ask(operation: Operation, pursuit: Pursuit): Promise<void> {
    const { name, want, upTo } = pursuit;
    const { asks } = this.#parts;
    try {
      const { keyRequest, recovery }: AskedKey =
        typeof want === 'string'
          ? await asks.one(operation, { ...name, kind: want, priority: 'FOREGROUND' })
          : await asks.reject(operation, name, upTo, rejectionReason(want.wrong));
      pursuit.keyRequestId = keyRequest?.keyRequestId;
      pursuit.miss = pursuit.miss.with({
        recovery,
        keyRequestId: keyRequest?.keyRequestId,
        remedy: recovery === 'NO_HOLDER_EXISTS' ? 'REQUEST_ROTATION' : 'WAIT',
        endedBecause: keyRequest?.endedBecause || undefined,
      });
    } catch (error) {
      // Somebody delivered the key since it was missed: the next read finds it.
      if (!(error instanceof RefusalError) || error.reason !== 'KEY_REQUEST_NOT_NEEDED') throw error;
      this.hint(name);
    }
  }

  #giveUpIfHopeless({ miss }: Pursuit, waitForHolder: boolean): void {
    const hopeless = miss.recovery === 'NO_HOLDER_EXISTS' || miss.recovery === 'NOT_PERMITTED';
    if (hopeless || (!waitForHolder && miss.recovery === 'PENDING_NO_HOLDER_ONLINE')) throw miss;
  }

  /** Ends the pursuit when its request has ended without a key. */
  async #refuseEnded(operation: Operation, pursuit: Pursuit, missed: boolean): Promise<void> {
    const { calls } = this.#parts;
    if (pursuit.keyRequestId === undefined) return;
    const request = await findKeyRequest(pursuit.keyRequestId, (token) =>
      calls.call(operation, (options) =>
        calls.session.listKeyRequests(
          { role: KeyRequestRole.REQUESTER, includeEnded: true, page: { size: 200, token } },
          options,
        ),
      ),
    );
    const open = [KeyRequestState.WAITING_FOR_HOLDER, KeyRequestState.OFFERED] as KeyRequestState[];
    if (request !== undefined && open.includes(request.state)) {
      const offered = request.state === KeyRequestState.OFFERED;
      pursuit.miss = pursuit.miss.with({ recovery: offered ? 'PENDING_OFFERED' : 'PENDING_NO_HOLDER_ONLINE' });
    } else if (request?.state !== KeyRequestState.FULFILLED || missed) {
      throw pursuit.miss.with({ keyRequestId: pursuit.keyRequestId, endedBecause: request?.endedBecause || undefined });
    }
  }

  /** Waits for a hint, and no longer than it is worth: hints may be lost. */
  async #nextLook(operation: Operation, watch: Watch, { miss }: Pursuit, turn: number): Promise<void> {
    const { clock, calls, isAttached } = this.#parts;
    const firstMs = isAttached() ? attachedPollMs : detachedPollMs;
    const pollMs = Math.min(Math.max(firstMs * 2 ** turn, turn === 0 ? 0 : miss.retryAfterMs), longestPollMs);
    const control = new AbortController();
    const signal = AbortSignal.any([operation.signal, control.signal]);
    try {
      await Promise.race([watch.next(), pause(clock, calls.jittered(pollMs), signal)]);
    } finally {
      watch.forget();
      control.abort();
    }
  }

  #delivered(operation: Operation, { name, keyRequestId }: Pursuit, { attempt, sealer }: HeldSession): void {
    const { calls, events, background } = this.#parts;
    // The key is in hand: nobody waits for the acknowledgement, nor for who gives up now.
    const acknowledging = { ...operation, signal: new AbortController().signal };
    background(
      'acknowledge key',
      calls.call(acknowledging, (options) => calls.session.ackKey({ ...name, attempt }, options)),
    );
    events.emit('keyDelivered', { ...name, keyRequestId, sealer, attempt });
  }
}

async function findKeyRequest(
  keyRequestId: string,
  page: (token: string) => Promise<{ keyRequests: KeyRequest[]; nextToken: string }>,
): Promise<KeyRequest | undefined> {
  let token = '';
  do {
    const { keyRequests, nextToken } = await page(token);
    const found = keyRequests.find((request) => request.keyRequestId === keyRequestId);
    if (found) return found;
    token = nextToken;
  } while (token !== '');
  return undefined;
}

function pursuitOf(name: SessionName, outcome: Exclude<ReadOutcome, { kind: 'held' }>): Pursuit {
  switch (outcome.kind) {
    case 'miss':
      return { name, miss: outcome.miss, want: 'MISSING', upTo: -1, keyRequestId: undefined };
    case 'wrong':
    case 'unopenable': {
      const { attempt, problem } = outcome;
      const miss = new KeyMissError(name, {
        cause: outcome.kind === 'wrong' ? 'ENVELOPE_WRONG' : 'ENVELOPE_UNOPENABLE',
        recovery: 'REQUESTABLE',
        remedy: 'REQUEST_KEY',
        evidence: { attempt: String(attempt), problem },
      });
      const want = outcome.kind === 'wrong' ? { wrong: problem } : 'REWRAP';
      return { name, miss, want, upTo: attempt, keyRequestId: undefined };
    }
    case 'stale':
      throw new Error('a first read has no envelope to skip');
  }
}

function opened(held: HeldSession, origin: OpenSession['origin'], operation: Operation) {
  const { session, attempt, sealer } = held;
  const { conversationId, sessionId, epoch, header, headerHash } = session;
  const initiator = { userId: session.initiator.userId, deviceId: session.initiator.deviceId };
  const traceId = traceIdOf(operation);
  return {
    held,
    open: { conversationId, sessionId, epoch, header, headerHash, initiator, sealer, attempt, origin, traceId },
  };
}

function keyOf({ conversationId, sessionId }: SessionName): string {
  return `${conversationId} ${sessionId}`;
}
