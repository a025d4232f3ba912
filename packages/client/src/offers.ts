import {
  DeclineReason,
  type Envelope,
  type KeyRequest,
  KeyRequestPriority,
  KeyRequestRole,
  type KeysWaiting,
  type Notification,
} from '@keytrail/contracts';
import { type Ref, sealEnvelope } from '@keytrail/crypto';
import { deviceKey, randomUuid } from './bytes.ts';
import { pause } from './clock.ts';
import type { Emitter } from './emitter.ts';
import { KeyMissError, RefusalError, SessionRefusedError } from './errors.ts';
import type { ClientEvents, DeclineReasonName } from './events.ts';
import { refusalOf } from './key-refusal.ts';
import { eachOf, Lanes } from './lanes.ts';
import { Declined, type OfferCheckParts, OfferChecks, type RecipientOf } from './offer-checks.ts';
import type { SessionOpener } from './open-session.ts';
import type { HeldSession, Sessions } from './sessions.ts';
import type { SpanAttributes } from './span-attributes.ts';
import { contextOf, type Operation, type Tracing, traceIdOf } from './tracing.ts';

export interface OfferParts extends OfferCheckParts {
  readonly sessions: Sessions;
  readonly tracing: Tracing;
  readonly events: Emitter<ClientEvents>;
  readonly opener: SessionOpener;
}

/** Someone else helped, or the request is over: nothing is wrong. */
const tooLate = new Set(['NOT_OFFERED', 'KEY_REQUEST_ENDED', 'ATTEMPT_ALREADY_FULFILLED']);
/** A requester's offers are answered so many at a time: some 100 KB in one call, sealed in a moment also where primitives are slow. */
const offersPerBatch = 50;
const requestersAtOnce = 4;
const callsAtOnce = 8;
const envelopesPerTurn = 8;

type Offered = Pick<KeyRequest, 'keyRequestId' | 'conversationId' | 'sessionId' | 'attempt' | 'requester' | 'priority'>;

/** An offer, and the operation in which it is answered. */
interface Offer {
  readonly keyRequestId: string;
  readonly conversationId: string;
  readonly sessionId: string;
  readonly attempt: number;
  readonly requester: Ref;
  readonly urgent: boolean;
  readonly operation: Operation;
}

interface Sealed {
  readonly offer: Offer;
  readonly envelope: Envelope;
}

/**
 * Answers key requests that are offered to this device: re-seals what the requester may have by this device's own lights, or declines. What one
 * device asks for is answered in batches; devices take turns.
 */
export class OfferAnswers {
  readonly #parts: OfferParts;
  readonly #checks: OfferChecks;
  readonly #answering = new Set<string>();
  readonly #lanes: Lanes<Offer>;
  #listing: Promise<Promise<void>[]> | undefined;
  #again = false;

  constructor(parts: OfferParts) {
    this.#parts = parts;
    this.#checks = new OfferChecks(parts);
    this.#lanes = new Lanes({
      atOnce: requestersAtOnce,
      batchOf: offersPerBatch,
      isUrgent: ({ urgent }) => urgent,
      work: (offers) => this.#answer(offers),
    });
  }

  /** Answers the offer that a notification tells of, in the trace that led to it; of several it only tells that there are some, and they are listed. */
  answerOffer(notification: Notification, signal: AbortSignal): Promise<void> {
    const { keyRequestId, attempt, requester, offers, traceparent } = notification;
    if (offers > 1 || keyRequestId === '') return this.answerAll(signal, contextOf(traceparent));
    return this.#run({ within: contextOf(traceparent), signal, keyRequestId }, async (operation) => {
      const told = requester !== undefined && attempt > 0;
      // One that comes alone is not part of a storm, whoever makes one meanwhile.
      const offered: Offered[] = told
        ? [{ ...notification, priority: KeyRequestPriority.FOREGROUND }]
        : await this.#offered(operation, keyRequestId);
      await Promise.all(offered.map((offer) => this.#take(operation, offer)));
    });
  }

  /** What the greeting tells of offers; without its word they are listed. */
  async attached(signal: AbortSignal, waiting: KeysWaiting | undefined): Promise<void> {
    if (waiting === undefined || waiting.offers > 0) await this.answerAll(signal);
  }

  /** Answers whatever is offered to this device now; `within` is the trace that led to it, where one did. */
  answerAll(signal: AbortSignal, within?: ReturnType<typeof contextOf>): Promise<void> {
    return this.#run({ within, signal }, async (operation) => {
      // Offers are listed once, however many notifications say that there are some; those that come meanwhile, once more.
      this.#again = true;
      this.#listing ??= this.#takeAll(operation);
      await Promise.all(await this.#listing);
    });
  }

  async #takeAll(operation: Operation): Promise<Promise<void>[]> {
    const taken: Promise<void>[] = [];
    try {
      while (this.#again) {
        this.#again = false;
        for (const offer of await this.#offered(operation)) {
          const answered = this.#take(operation, offer);
          // Whoever waits for the list hears of it.
          answered.catch(() => {});
          taken.push(answered);
        }
      }
      return taken;
    } finally {
      // At once: who comes a moment later must not join a list that is through.
      this.#listing = undefined;
    }
  }

  #run(
    about: { within?: ReturnType<typeof contextOf>; signal: AbortSignal; keyRequestId?: string },
    work: (operation: Operation) => Promise<void>,
  ): Promise<void> {
    const attributes: SpanAttributes = about.keyRequestId ? { 'keytrail.key_request.id': about.keyRequestId } : {};
    return this.#parts.tracing.run('answer offer', { ...about, attributes }, work);
  }

  async #offered(operation: Operation, keyRequestId?: string): Promise<KeyRequest[]> {
    const { calls } = this.#parts;
    const all: KeyRequest[] = [];
    let token = '';
    do {
      const request = { role: KeyRequestRole.HOLDER, page: { size: 200, token } };
      const page = await calls.call(operation, (options) => calls.session.listKeyRequests(request, options));
      const wanted = page.keyRequests.filter((offer) => !keyRequestId || offer.keyRequestId === keyRequestId);
      all.push(...wanted);
      token = keyRequestId && wanted.length > 0 ? '' : page.nextToken;
    } while (token !== '');
    return all;
  }

  async #take(operation: Operation, offered: Offered): Promise<void> {
    const { keyRequestId, conversationId, sessionId, attempt, priority } = offered;
    const name = `${keyRequestId} ${attempt}`;
    if (offered.requester === undefined || this.#answering.has(name)) return;
    this.#answering.add(name);
    const { userId, deviceId } = offered.requester;
    const requester = { userId, deviceId };
    const urgent = priority === KeyRequestPriority.FOREGROUND;
    const offer = { keyRequestId, conversationId, sessionId, attempt, requester, urgent, operation };
    try {
      await this.#lanes.add(deviceKey(requester), offer);
    } finally {
      this.#answering.delete(name);
    }
  }

  /** Offers for one requesting device. */
  async #answer(offers: readonly Offer[]): Promise<void> {
    const [first] = offers;
    if (first === undefined) return;
    const { operation, requester } = first;
    operation.signal.throwIfAborted();
    // Both begin at once: neither needs the other.
    const checking = this.#checks.requester(operation, requester);
    checking.catch(() => {});
    const ready: { offer: Offer; held: HeldSession }[] = [];
    const declined: { offer: Offer; reason: DeclineReasonName }[] = [];
    let failure: { error: unknown } | undefined;
    const decline = (offer: Offer, error: unknown) => {
      if (error instanceof Declined) declined.push({ offer, reason: error.reason });
      else failure ??= { error };
    };
    await eachOf(offers, callsAtOnce, async (offer) => {
      try {
        const held = await this.#hold(offer);
        await this.#checks.entitlement(operation, held, requester);
        ready.push({ offer, held });
      } catch (error) {
        operation.signal.throwIfAborted();
        decline(offer, error);
      }
    });
    const sealed: Sealed[] = [];
    try {
      const recipientOf = ready.length > 0 && (await checking);
      for (const each of recipientOf ? ready : []) {
        sealed.push(await this.#seal(each.offer, each.held, recipientOf as RecipientOf));
        // A long batch must not stop everything else.
        if (sealed.length % envelopesPerTurn === 0) await pause(this.#parts.clock, 0, operation.signal, true);
      }
    } catch (error) {
      operation.signal.throwIfAborted();
      for (const { offer } of ready.slice(sealed.length)) decline(offer, error);
    }
    if (sealed.length > 0) await this.#handIn(operation, requester, sealed).catch((error) => decline(first, error));
    await eachOf(declined, callsAtOnce, ({ offer, reason }) => this.#decline(operation, offer, reason));
    if (failure !== undefined) throw failure.error;
  }

  /**
   * The session from the store, or from its own envelope, which this device may not have had a reason to open yet.
   *
   * @throws Declined.
   */
  async #hold({ conversationId, sessionId, operation }: Offer): Promise<HeldSession> {
    const { sessions, opener } = this.#parts;
    const held = await sessions.find(conversationId, sessionId);
    if (held !== undefined) return held;
    const how = { recover: false, signal: operation.signal };
    try {
      return (await opener.open({ conversationId, sessionId }, how, operation)).held;
    } catch (error) {
      if (operation.signal.aborted) throw operation.signal.reason;
      if (error instanceof KeyMissError || error instanceof SessionRefusedError) throw new Declined('KEY_NOT_HELD');
      throw error;
    }
  }

  async #seal(offer: Offer, { session, sessionKey }: HeldSession, recipientOf: RecipientOf): Promise<Sealed> {
    const { primitives, own } = this.#parts;
    const { attempt, keyRequestId } = offer;
    const sealer = await own.registered();
    const recipient = await recipientOf(keyRequestId);
    return { offer, envelope: sealEnvelope({ primitives, sealer, recipient, session, attempt, sessionKey }) };
  }

  async #handIn(operation: Operation, requester: Ref, sealed: readonly Sealed[]): Promise<void> {
    const refusals = await this.#fulfil(operation, sealed);
    const accepted = sealed.filter((_, i) => refusals[i] === undefined);
    if (accepted.length > 0) await this.#parts.store.addSealedTo([requester]);
    for (const { offer } of accepted) this.#parts.events.emit('offerAnswered', eventOf(offer));
    const wrong = refusals.find((refusal) => refusal !== undefined && !tooLate.has(refusal.reason));
    if (wrong !== undefined) throw wrong;
  }

  /** What was refused, in the order of the envelopes. */
  async #fulfil(operation: Operation, sealed: readonly Sealed[]): Promise<(RefusalError | undefined)[]> {
    const { calls, primitives } = this.#parts;
    const requestId = randomUuid(primitives);
    const fulfilments = sealed.map(({ offer: { keyRequestId, attempt }, envelope }) => ({
      keyRequestId,
      attempt,
      envelope,
    }));
    const [only] = fulfilments;
    if (only !== undefined && fulfilments.length === 1) {
      try {
        await calls.call(operation, (options) => calls.session.fulfillKeyRequest({ requestId, ...only }, options));
        return [undefined];
      } catch (error) {
        if (error instanceof RefusalError && error.reason !== '') return [error];
        throw error;
      }
    }
    const { results } = await calls.call(operation, (options) =>
      calls.session.fulfillKeyRequests({ requestId, fulfilments }, options),
    );
    return results.map(({ refused }) => refused && refusalOf(refused, traceIdOf(operation)));
  }

  async #decline(operation: Operation, offer: Offer, reason: DeclineReasonName): Promise<void> {
    const { calls, events } = this.#parts;
    const { keyRequestId, attempt } = offer;
    offer.operation.span.setAttribute('keytrail.reason', reason);
    try {
      await calls.call(operation, (options) =>
        calls.session.declineOffer({ keyRequestId, attempt, reason: DeclineReason[reason] }, options),
      );
    } catch (error) {
      if (!(error instanceof RefusalError) || !tooLate.has(error.reason)) throw error;
    }
    events.emit('offerDeclined', { ...eventOf(offer), reason });
  }
}

function eventOf({ keyRequestId, conversationId, sessionId, requester, attempt }: Offer) {
  return { keyRequestId, conversationId, sessionId, requester, attempt };
}
