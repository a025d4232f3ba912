import {
  DeclineReason,
  type DeviceList,
  HistoryPolicy,
  type KeyRequest,
  KeyRequestRole,
  type Notification,
  type PrekeyBundle,
} from '@keytrail/contracts';
import {
  CertificateError,
  RecipientError,
  type Ref,
  sealEnvelope,
  type VerifiedRecipient,
  verifyBundle,
} from '@keytrail/crypto';
import { deviceKey, randomUuid, sameDevice } from './bytes.ts';
import type { Conversations } from './conversations.ts';
import { isLogged } from './device-logs.ts';
import { type ListedDevice, sameCertifiedKeys } from './directory.ts';
import type { Emitter } from './emitter.ts';
import { DeviceListRefusedError, KeyMissError, RefusalError, SessionRefusedError } from './errors.ts';
import type { ClientEvents, DeclineReasonName } from './events.ts';
import { claimBundles, type SealingParts } from './make-session.ts';
import type { SessionOpener } from './open-session.ts';
import type { HeldSession, Sessions } from './sessions.ts';
import { contextOf, type Operation, type Tracing } from './tracing.ts';

export interface OfferParts extends SealingParts {
  readonly sessions: Sessions;
  readonly conversations: Conversations;
  readonly tracing: Tracing;
  readonly events: Emitter<ClientEvents>;
  readonly opener: SessionOpener;
}

/** Someone else helped, or the request is over: nothing is wrong. */
const tooLate = new Set(['NOT_OFFERED', 'KEY_REQUEST_ENDED', 'ATTEMPT_ALREADY_FULFILLED']);
/** Up to this many members their devices are fetched while the offer is, not after. */
const membersToFetchAhead = 4;

class Declined extends Error {
  readonly reason: DeclineReasonName;

  constructor(reason: DeclineReasonName) {
    super(reason);
    this.reason = reason;
  }
}

/** What is fetched while the offer itself is. */
interface Ahead {
  readonly held: Promise<HeldSession | undefined>;
  readonly lists: Promise<readonly DeviceList[]>;
}

/** Answers key requests that are offered to this device: re-seals what the requester may have by this device's own lights, or declines. */
export class OfferAnswers {
  readonly #parts: OfferParts;
  readonly #answering = new Set<string>();

  constructor(parts: OfferParts) {
    this.#parts = parts;
  }

  /** Answers the offer that a notification tells of, in the trace that led to it. */
  answerOffer(notification: Notification, signal: AbortSignal): Promise<void> {
    const { conversationId, sessionId, keyRequestId, traceparent } = notification;
    return this.#run({ within: contextOf(traceparent), signal, keyRequestId }, async (operation) => {
      const held = this.#hold(operation, { conversationId, sessionId });
      const lists = this.#fetchAhead(operation, { conversationId, sessionId });
      // Whoever answers the offer sees to a failure; without an offer nobody does.
      held.catch(() => {});
      lists.catch(() => {});
      const offered = await this.#offered(operation, keyRequestId);
      await Promise.all(offered.map((request) => this.#answer(operation, request, { held, lists })));
    });
  }

  /** Answers whatever is offered to this device now. */
  answerAll(signal: AbortSignal): Promise<void> {
    return this.#run({ signal }, async (operation) => {
      for (const request of await this.#offered(operation)) {
        const held = this.#hold(operation, request);
        held.catch(() => {});
        await this.#answer(operation, request, { held, lists: Promise.resolve([]) });
      }
    });
  }

  #run(
    about: { within?: ReturnType<typeof contextOf>; signal: AbortSignal; keyRequestId?: string },
    work: (operation: Operation) => Promise<void>,
  ): Promise<void> {
    const attributes = about.keyRequestId ? { 'keytrail.key_request.id': about.keyRequestId } : {};
    return this.#parts.tracing.run('answer offer', { ...about, attributes }, work);
  }

  /** The session from the store, or from its own envelope, which this device may not have had a reason to open yet. */
  async #hold(
    operation: Operation,
    { conversationId, sessionId }: { conversationId: string; sessionId: string },
  ): Promise<HeldSession | undefined> {
    const { sessions, opener } = this.#parts;
    const held = await sessions.find(conversationId, sessionId);
    if (held !== undefined) return held;
    const how = { recover: false, signal: operation.signal };
    const opened = await opener.open({ conversationId, sessionId }, how, operation).catch((error: unknown) => {
      if (operation.signal.aborted) throw operation.signal.reason;
      if (error instanceof KeyMissError || error instanceof SessionRefusedError) return undefined;
      throw error;
    });
    return opened?.held;
  }

  async #fetchAhead(
    operation: Operation,
    { conversationId, sessionId }: { conversationId: string; sessionId: string },
  ): Promise<readonly DeviceList[]> {
    const { own, directory, sessions, conversations } = this.#parts;
    const held = await sessions.find(conversationId, sessionId);
    const members = held?.session.header.deviceLists ?? conversations.seen(conversationId)?.members ?? [];
    const fits = members.length > 0 && members.length <= membersToFetchAhead;
    const userIds = fits ? members.map(({ userId }) => userId) : [own.userId];
    // A failure here only means that it is fetched when it is needed.
    return directory.current(operation, userIds).catch(() => []);
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

  async #answer(operation: Operation, request: KeyRequest, ahead: Ahead): Promise<void> {
    const offer = `${request.keyRequestId} ${request.attempt}`;
    if (this.#answering.has(offer) || request.requester === undefined) return;
    this.#answering.add(offer);
    const { keyRequestId, conversationId, sessionId, attempt } = request;
    const requester = { userId: request.requester.userId, deviceId: request.requester.deviceId };
    const event = { keyRequestId, conversationId, sessionId, requester, attempt };
    try {
      await this.#fulfil(operation, request, requester, ahead);
      this.#parts.events.emit('offerAnswered', event);
    } catch (error) {
      if (error instanceof RefusalError && tooLate.has(error.reason)) return;
      if (!(error instanceof Declined)) throw error;
      await this.#decline(operation, request, error.reason);
      this.#parts.events.emit('offerDeclined', { ...event, reason: error.reason });
    } finally {
      this.#answering.delete(offer);
    }
  }

  async #fulfil(operation: Operation, request: KeyRequest, requester: Ref, ahead: Ahead): Promise<void> {
    const { calls, primitives, store, own } = this.#parts;
    const held = await ahead.held;
    if (held === undefined) throw new Declined('KEY_NOT_HELD');
    const sealer = await own.registered();
    await this.#checkEntitlement(operation, held, requester);
    const recipient = await this.#recipient(operation, request, requester, await ahead.lists);
    const { keyRequestId, attempt } = request;
    const { session, sessionKey } = held;
    const envelope = sealEnvelope({ primitives, sealer, recipient, session, attempt, sessionKey });
    const fulfilment = { requestId: randomUuid(primitives), keyRequestId, attempt, envelope };
    await calls.call(operation, (options) => calls.session.fulfillKeyRequest(fulfilment, options));
    await store.addSealedTo([requester]);
  }

  /**
   * The header, which its initiator signed, names everybody who was a member at its epoch. Only where it says that history is shared does the
   * server's word about members count.
   */
  async #checkEntitlement(operation: Operation, { session }: HeldSession, requester: Ref): Promise<void> {
    const { header, conversationId } = session;
    if (header.deviceLists.some(({ userId }) => userId === requester.userId)) return;
    if (header.historyPolicy !== HistoryPolicy.SHARED) throw new Declined('NOT_ENTITLED');
    const { members } = await this.#parts.conversations.get(operation, conversationId);
    if (!members.some(({ userId }) => userId === requester.userId)) throw new Declined('NOT_ENTITLED');
  }

  async #recipient(
    operation: Operation,
    request: KeyRequest,
    requester: Ref,
    ahead: readonly DeviceList[],
  ): Promise<VerifiedRecipient> {
    const { store, rootKeys, directory } = this.#parts;
    const [[sealedBefore], list] = await Promise.all([
      store.sealedTo([requester]),
      ahead.find(({ userId }) => userId === requester.userId) ??
        directory.current(operation, [requester.userId]).then(([fetched]) => fetched, declineRefusedList),
    ]);
    const device = list?.devices.find(({ deviceId }) => deviceId === requester.deviceId);
    if (list === undefined || list.version === 0n) return this.#untold(operation, request, requester);
    if (device === undefined) throw new Declined('UNCERTIFIED');
    if (device.revokedAt !== undefined) throw new Declined('NOT_ENTITLED');
    const verdict = await rootKeys.judge(requester.userId, list.rootKey);
    if (!verdict.trusted) throw new Declined('ROOT_KEY_CHANGED');
    await this.#checkTrust(device, verdict.rootKey);
    if (sealedBefore === true) return verified(requester, () => directory.recipient(device, verdict.rootKey));
    return this.#claimed(operation, request, requester, (bundle) => sameCertifiedKeys(bundle, device));
  }

  /**
   * Who has left the conversation may still have its own epochs, but its devices are not told any more: the bundle says who it is, together
   * with what was seen of the log before. The own list is always told.
   */
  async #untold(operation: Operation, request: KeyRequest, requester: Ref): Promise<VerifiedRecipient> {
    const { own, logs } = this.#parts;
    if (requester.userId === own.userId) throw new Declined('UNCERTIFIED');
    const log = await logs.remembered(requester.userId);
    if (log.version === 0n) return this.#claimed(operation, request, requester, () => true);
    const known = log.devices.find(({ deviceId }) => deviceId === requester.deviceId);
    if (known === undefined) throw new Declined('UNCERTIFIED');
    if (known.revokedInVersion !== undefined) throw new Declined('NOT_ENTITLED');
    return this.#claimed(operation, request, requester, (bundle) => isLogged(known, bundle));
  }

  async #claimed(
    operation: Operation,
    { keyRequestId }: KeyRequest,
    requester: Ref,
    isAsSeen: (bundle: PrekeyBundle) => boolean,
  ): Promise<VerifiedRecipient> {
    const { calls, primitives, rootKeys } = this.#parts;
    const claimed = new Map<string, PrekeyBundle>();
    // One claim for the request, however often it is offered and answered.
    const about = { claimSeed: keyRequestId, claimed, keyRequestId };
    await claimBundles({ calls, primitives }, operation, [requester], about);
    const bundle = claimed.get(deviceKey(requester));
    if (bundle === undefined) throw new Declined('NOT_ENTITLED');
    if (!sameDevice(bundle, requester) || !isAsSeen(bundle)) throw new Declined('UNCERTIFIED');
    const verdict = await rootKeys.judge(requester.userId, bundle.certificate?.rootKey ?? new Uint8Array());
    if (!verdict.trusted) throw new Declined('ROOT_KEY_CHANGED');
    await this.#checkTrust(bundle, verdict.rootKey);
    if (!(await rootKeys.confirm(requester.userId, verdict.rootKey))) throw new Declined('ROOT_KEY_CHANGED');
    return verified(requester, () => verifyBundle(primitives, bundle, verdict.rootKey));
  }

  async #checkTrust(device: ListedDevice, rootKey: Uint8Array): Promise<void> {
    const { directory, deviceTrust } = this.#parts;
    try {
      directory.certify(device, rootKey);
    } catch (error) {
      if (!(error instanceof CertificateError)) throw error;
      throw new Declined('UNCERTIFIED');
    }
    if (!(await deviceTrust(device))) throw new Declined('NOT_TRUSTED');
  }

  async #decline(operation: Operation, request: KeyRequest, reason: DeclineReasonName): Promise<void> {
    const { calls } = this.#parts;
    const { keyRequestId, attempt } = request;
    operation.span.setAttribute('keytrail.reason', reason);
    try {
      await calls.call(operation, (options) =>
        calls.session.declineOffer({ keyRequestId, attempt, reason: DeclineReason[reason] }, options),
      );
    } catch (error) {
      if (!(error instanceof RefusalError) || !tooLate.has(error.reason)) throw error;
    }
  }
}

/** Whoever is in a list that does not follow from its log is certified by nobody. */
function declineRefusedList(error: unknown): never {
  if (error instanceof DeviceListRefusedError) throw new Declined('UNCERTIFIED');
  throw error;
}

function verified(requester: Ref, verify: () => VerifiedRecipient): VerifiedRecipient {
  try {
    const recipient = verify();
    if (sameDevice(recipient, requester)) return recipient;
  } catch (error) {
    if (!(error instanceof RecipientError)) throw error;
  }
  throw new Declined('UNCERTIFIED');
}
