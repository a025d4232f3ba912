import {
  type FulfillKeyRequestsRequest,
  type GetRotationRequest,
  type KeyRequest,
  KeyRequestKind,
  type KeyRequestPriority,
  KeyRequestState,
  type ListKeyChangesRequest,
  type ListSessionsRequest,
  NotificationKind,
  type RejectKeyRequest,
  type RequestKeysRequest,
  RotationDueReason,
} from '@keytrail/contracts';
import { parseHeader, type Ref } from '@keytrail/crypto';
import { isOpen, type World } from './world.ts';

/** What a test decides about one item of a call with many; undefined lets it through. */
export type RefusalOf = (item: {
  conversationId: string;
  sessionId: string;
}) => { reason: string; message?: string; retryAfterMs?: number } | undefined;

const nameOf = ({ userId, deviceId }: Ref) => `${userId} ${deviceId}`;

/** The part of the world that asks for many keys at once, and has rotations made. */
export class WorldKeys {
  readonly #world: World;
  /** The keys of each RequestKeys. */
  readonly asked: { by: string; keys: { sessionId: string; priority: KeyRequestPriority; kind: KeyRequestKind }[] }[] =
    [];
  /** How many envelopes came in each FulfillKeyRequests, and for whom. */
  readonly fulfilled: { by: string; count: number; requester: string }[] = [];
  readonly rejections: { by: string; attempt: number; reason: number }[] = [];
  readonly declinedRotations: { by: string; conversationId: string }[] = [];
  refuse: RefusalOf = () => undefined;
  /** Whom a rotation is said to be for; every device that is there unless a test says otherwise. */
  recipients: ((all: Ref[]) => Ref[]) | undefined;
  asking: Ref | undefined;

  constructor(world: World) {
    this.#world = world;
  }

  requestKeys(caller: Ref, { keys }: RequestKeysRequest) {
    const world = this.#world;
    this.asked.push({
      by: nameOf(caller),
      keys: keys.map(({ sessionId, priority, kind }) => ({ sessionId, priority, kind })),
    });
    const opened: KeyRequest[] = [];
    const { holdersOnline } = world;
    // Offered together, below.
    world.holdersOnline = false;
    const results = keys.map(({ conversationId, sessionId, kind, priority }) => {
      const refused = this.refuse({ conversationId, sessionId });
      if (refused) return { refused: { message: '', retryAfterMs: 0, metadata: {}, ...refused } };
      if (kind === KeyRequestKind.MISSING && world.session(sessionId).envelopes.get(nameOf(caller))) {
        return { refused: { reason: 'KEY_REQUEST_NOT_NEEDED', message: '', retryAfterMs: 0, metadata: {} } };
      }
      const keyRequest = world.openRequest(caller, conversationId, sessionId, kind);
      keyRequest.priority = priority;
      opened.push(keyRequest);
      return { keyRequest, recovery: world.recoveryOf(keyRequest) };
    });
    world.holdersOnline = holdersOnline;
    if (holdersOnline) this.offer(opened);
    return { results };
  }

  /** Offers requests to every device that is attached, as one notification. */
  offer(requests: readonly KeyRequest[]): void {
    const waiting = requests.filter(({ state }) => state === KeyRequestState.WAITING_FOR_HOLDER);
    for (const request of waiting) {
      request.state = KeyRequestState.OFFERED;
      request.attempt += 1;
    }
    const [first] = waiting;
    if (first?.requester === undefined) return;
    const { conversationId, sessionId, keyRequestId, attempt, requester } = first;
    const one = { conversationId, sessionId, keyRequestId, attempt, requester, offers: 1 };
    for (const [name, stream] of this.#world.streams) {
      if (name === nameOf(requester)) continue;
      stream.push({ kind: NotificationKind.KEY_OFFERED, ...(waiting.length === 1 ? one : { offers: waiting.length }) });
    }
  }

  fulfillKeyRequests(caller: Ref, { fulfilments }: FulfillKeyRequestsRequest) {
    const world = this.#world;
    const requests = fulfilments.map(({ keyRequestId }) =>
      world.keyRequests.find((each) => each.keyRequestId === keyRequestId),
    );
    const requesters = new Set(requests.map((request) => request?.requester && nameOf(request.requester)));
    this.fulfilled.push({ by: nameOf(caller), count: fulfilments.length, requester: [...requesters].join() });
    world.tellsDeliveries = fulfilments.length === 1;
    const results = fulfilments.map(({ envelope }, i) => {
      const request = requests[i];
      if (!request || !isOpen(request.state)) {
        return { refused: { reason: 'KEY_REQUEST_ENDED', message: '', retryAfterMs: 0, metadata: {} } };
      }
      if (envelope) world.deliver(request, envelope);
      return { keyRequest: request };
    });
    world.tellsDeliveries = true;
    for (const requester of requesters) {
      if (fulfilments.length > 1) world.streams.get(requester ?? '')?.push({ kind: NotificationKind.KEY_DELIVERED });
    }
    return { results };
  }

  rejectKey(caller: Ref, { conversationId, sessionId, attempt, reason }: RejectKeyRequest) {
    this.rejections.push({ by: nameOf(caller), attempt, reason });
    this.#world.rejected.push({ by: nameOf(caller), attempt });
    const keyRequest = this.#world.openRequest(caller, conversationId, sessionId, KeyRequestKind.REJECTED);
    return { keyRequest, recovery: this.#world.recoveryOf(keyRequest) };
  }

  /** From a cursor on everything is told once more, which the contract allows. */
  listKeyChanges(caller: Ref, { cursor }: ListKeyChangesRequest) {
    const mine = this.#world.keyRequests.filter(({ requester }) => requester && nameOf(requester) === nameOf(caller));
    const requests = cursor === '' ? mine.filter(({ state }) => isOpen(state)) : mine;
    return { requests, offers: [], nextCursor: String(Number(cursor || '0') + 1), more: false, reset: false };
  }

  listSessions({ userId }: Ref, { page }: ListSessionsRequest) {
    const size = page?.size || 100;
    const from = Number(page?.token || '0');
    const all = [...this.#world.sessions.values()].flatMap(({ session }) => {
      const { conversationId, sessionId, epoch, headerHash } = parseHeader(
        session.signedHeader?.header ?? new Uint8Array(),
      );
      const conversation = this.#world.conversations.get(conversationId);
      if (!conversation?.members.some((member) => member.userId === userId)) return [];
      return [{ conversationId, sessionId, epoch, headerHash, current: conversation.sessionId === sessionId }];
    });
    const sessions = all.toReversed().slice(from, from + size);
    return { sessions, nextToken: from + size < all.length ? String(from + size) : '' };
  }

  getRotation({ conversationId }: GetRotationRequest) {
    const world = this.#world;
    const conversation = world.conversation(conversationId);
    const lists = conversation.members.map(({ userId }) => world.identities.list(userId, true));
    const all = lists.flatMap(({ userId, devices }) =>
      devices.filter(({ revokedAt }) => !revokedAt).map(({ deviceId }) => ({ userId, deviceId })),
    );
    return {
      conversation,
      recipients: this.recipients?.(all) ?? all,
      deviceLists: lists.map(({ userId, version }) => ({ userId, version })),
      ...(this.asking && { askedDevice: this.asking }),
    };
  }

  /** Says that a rotation is due, and asks a device for it by name. */
  askRotation(conversationId: string, device: Ref): void {
    const due = { ...this.#world.conversation(conversationId), rotationDue: RotationDueReason.AGE };
    this.#world.conversations.set(conversationId, due);
    this.asking = device;
    this.#world.streams.get(nameOf(device))?.push({ kind: NotificationKind.ROTATION_ASKED, conversationId });
  }
}
