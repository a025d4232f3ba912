import { create } from '@bufbuild/protobuf';
import { timestampFromDate } from '@bufbuild/protobuf/wkt';
import { createRouterTransport } from '@connectrpc/connect';
import {
  type AttachRequest,
  type Conversation,
  ConversationSchema,
  ConversationService,
  type Device,
  DeviceSchema,
  type Envelope,
  HistoryPolicy,
  IdentityKeysService,
  type InitialSession,
  type KeyRequest,
  type KeyRequestKind,
  KeyRequestRole,
  KeyRequestSchema,
  KeyRequestState,
  type Member,
  type Message,
  MessageSchema,
  MissCause,
  NotificationKind,
  PrekeyKind,
  PresenceService,
  Recovery,
  type RegisterDeviceRequest,
  Remedy,
  RotationDueReason,
  SessionIncompleteSchema,
  SessionService,
  type SignedRosterChange,
  type Withholding,
} from '@keytrail/contracts';
import { deriveConversationId, parseHeader, type Ref } from '@keytrail/crypto';
import { refuse, refuseMiss } from '@keytrail/rpc/refusal';
import type { Transports } from '../src/index.ts';
import { WorldIdentities } from './world-identities.ts';
import { WorldKeys } from './world-keys.ts';
import { WorldPrekeys } from './world-prekeys.ts';
import { MEMBER_ADDED, MEMBER_REMOVED, POLICY_CHANGED, WorldRosters } from './world-rosters.ts';

interface StoredSession {
  readonly session: InitialSession;
  readonly envelopes: Map<string, Envelope[]>;
  readonly withholdings: readonly Withholding[];
}

interface Stream {
  push(notification: {
    kind: NotificationKind;
    conversationId?: string;
    sessionId?: string;
    keyRequestId?: string;
    traceparent?: string;
    userId?: string;
    attempt?: number;
    requester?: Ref;
    offers?: number;
  }): void;
  end(error?: unknown): void;
}

type Method = string;

const keyOf = ({ userId, deviceId }: Ref) => `${userId} ${deviceId}`;

/** Stand-ins for the four services in memory, as far as the logic of the SDK needs them: they believe what they are told. */
export class World {
  readonly devices = new Map<string, Device[]>();
  readonly identities = new WorldIdentities(this.devices);
  readonly prekeys = new WorldPrekeys();
  readonly pools = this.prekeys.pools;
  readonly keys = new WorldKeys(this);
  readonly claims: { claimId: string; devices: string[] }[] = [];
  readonly conversations = new Map<string, Conversation>();
  readonly rosters = new WorldRosters();
  readonly sessions = new Map<string, StoredSession>();
  readonly messages = new Map<string, Message[]>();
  readonly keyRequests: KeyRequest[] = [];
  readonly declined: { keyRequestId: string; by: string; reason: number }[] = [];
  readonly acknowledged: { by: string; sessionId: string; attempt: number }[] = [];
  readonly rejected: { by: string; attempt: number }[] = [];
  readonly requested: KeyRequestKind[] = [];
  readonly streams = new Map<string, Stream>();
  readonly attachCounters: bigint[] = [];
  readonly traceparents: { method: Method; traceparent: string }[] = [];
  /** Runs before a method is answered; what it throws is the answer. */
  readonly before = new Map<Method, (request: never, caller: Ref) => void | Promise<void>>();
  /** Runs on an answer before it leaves; what it throws is what the caller sees, though the work was done. */
  readonly after = new Map<Method, (response: never, caller: Ref) => void | Promise<void>>();
  readonly counts = new Map<Method, number>();
  readonly #claimed = new Map<string, unknown[]>();
  readonly #answered = new Map<string, unknown>();

  transports(user: string, device: string): Transports {
    const caller = { userId: user, deviceId: device };
    const answer =
      <Request, Response>(method: Method, work: (request: Request) => Response | Promise<Response>) =>
      async (request: Request, call: { requestHeader: Headers }): Promise<Response> => {
        this.counts.set(method, (this.counts.get(method) ?? 0) + 1);
        this.traceparents.push({ method, traceparent: call.requestHeader.get('traceparent') ?? '' });
        await this.before.get(method)?.(request as never, caller);
        const response = await work(request);
        await this.after.get(method)?.(response as never, caller);
        return response;
      };
    const once = <Request extends { requestId: string }, Response>(work: (request: Request) => Response) => {
      return (request: Request): Response => {
        const key = `${keyOf(caller)} ${request.requestId}`;
        const response = (this.#answered.get(key) as Response | undefined) ?? work(request);
        this.#answered.set(key, response);
        return response;
      };
    };
    const transport = createRouterTransport(({ service }) => {
      service(IdentityKeysService, {
        registerDevice: answer('registerDevice', (request) => this.#register(caller, request)),
        replenishPrekeys: answer('replenishPrekeys', (request) => this.prekeys.replenish(caller, request)),
        rotateSignedPrekey: answer('rotateSignedPrekey', (request) =>
          this.prekeys.rotate(this.device(user, device), request),
        ),
        getPrekeyStatus: answer('getPrekeyStatus', () => ({ status: this.prekeys.status(this.device(user, device)) })),
        checkKeys: answer('checkKeys', (request) => this.prekeys.check(this.device(user, device), request)),
        getDevices: answer('getDevices', ({ userIds, includeRevoked }) => ({
          deviceLists: userIds.map((userId) => this.identities.list(userId, includeRevoked)),
        })),
        listDeviceLog: answer('listDeviceLog', ({ users }) => ({
          deviceLogs: users.map((position) => this.identities.log(position)),
        })),
        revokeDevice: answer(
          'revokeDevice',
          once((request) => this.identities.revokeDevice(caller, request)),
        ),
        changeRootKey: answer(
          'changeRootKey',
          once((request) => this.identities.changeRootKey(caller, request)),
        ),
        setRecovery: answer('setRecovery', (request) => this.identities.setRecovery(caller, request)),
        getRecovery: answer('getRecovery', () => this.identities.getRecovery(caller)),
        claimPrekeyBundles: answer('claimPrekeyBundles', ({ claimId, devices, userIds }) => {
          const active = userIds.flatMap((userId) =>
            (this.devices.get(userId) ?? []).filter(({ revokedAt }) => !revokedAt),
          );
          const asked = [...devices, ...active];
          this.claims.push({ claimId, devices: asked.map(keyOf) });
          const results = this.#claimed.get(claimId) ?? asked.map((ref) => this.#claim(ref));
          this.#claimed.set(claimId, results);
          const users = userIds.map((userId) => {
            const { version, rootKey, head } = this.identities.logOf(userId);
            return { userId, deviceListVersion: version, rootKey, logHead: head };
          });
          return { results: results as ReturnType<World['_claimType']>, users };
        }),
      });
      service(ConversationService, {
        createConversation: answer(
          'createConversation',
          once((request) => {
            this.#checkWhole(request.initialSession, request.members);
            const conversationId = deriveConversationId(user, request.requestId);
            const said = this.rosters.signed(conversationId, request.signedRoster);
            const { sessionId, headerHash } = this.#store(request.initialSession);
            const conversation = create(ConversationSchema, {
              conversationId,
              kind: request.kind,
              epoch: 1n,
              sessionId,
              ...said,
              headerHash,
            });
            this.conversations.set(conversationId, conversation);
            this.messages.set(conversationId, []);
            return { conversation, envelopesWritten: request.initialSession?.envelopes.length ?? 0 };
          }),
        ),
        rotateSession: answer(
          'rotateSession',
          once((request) => {
            const current = this.conversation(request.conversationId);
            if (current.epoch !== request.expectedEpoch) throw this.epochConflict(current);
            if (current.rosterVersion !== request.expectedRosterVersion) {
              throw refuse('ROSTER_CONFLICT', 'the roster changed meanwhile');
            }
            this.#checkWhole(request.session, current.members);
            const { sessionId, headerHash } = this.#store(request.session);
            const epoch = current.epoch + 1n;
            const conversation = {
              ...current,
              epoch,
              sessionId,
              headerHash,
              rotationDue: RotationDueReason.UNSPECIFIED,
            };
            this.conversations.set(current.conversationId, conversation);
            return { conversation, envelopesWritten: request.session?.envelopes.length ?? 0 };
          }),
        ),
        getConversation: answer('getConversation', ({ conversationId }) => ({
          conversation: this.conversation(conversationId),
        })),
        addMembers: answer('addMembers', (request) => ({ conversation: this.#changeRoster(request, MEMBER_ADDED) })),
        removeMembers: answer('removeMembers', (request) => ({
          conversation: this.#changeRoster(request, MEMBER_REMOVED),
        })),
        changeRoles: answer('changeRoles', (request) => ({ conversation: this.#changeRoster(request) })),
        changePolicy: answer('changePolicy', (request) => ({
          conversation: this.#changeRoster(request, POLICY_CHANGED),
        })),
        listRosterChanges: answer('listRosterChanges', ({ conversationId, afterVersion, limit }) => {
          const rest = this.rosters.log(conversationId).filter(({ rosterVersion }) => rosterVersion > afterVersion);
          return { entries: rest.slice(0, limit || 100), more: rest.length > (limit || 100) };
        }),
        sendMessage: answer(
          'sendMessage',
          once((request) => {
            const current = this.conversation(request.conversationId);
            const { epoch } = parseHeader(
              this.session(request.sessionId).session.signedHeader?.header ?? new Uint8Array(),
            );
            if (current.rotationDue === RotationDueReason.MEMBER_REMOVED && epoch === current.epoch) {
              throw refuse('ROTATION_REQUIRED', 'rotate first', { metadata: { current_epoch: String(current.epoch) } });
            }
            const log = this.messages.get(request.conversationId) ?? [];
            const sequence = BigInt(log.length + 1);
            const { conversationId, sessionId, senderCounter, ciphertext, signature } = request;
            const message = {
              sequence,
              conversationId,
              sessionId,
              epoch,
              sender: caller,
              senderCounter,
              ciphertext,
              signature,
            };
            log.push(create(MessageSchema, { ...message, sentAt: timestampFromDate(new Date(0)) }));
            return { sequence, rotationDue: current.rotationDue };
          }),
        ),
        listSessions: answer('listSessions', (request) => this.keys.listSessions(caller, request)),
        getRotation: answer('getRotation', (request) => this.keys.getRotation(request)),
        declineRotation: answer('declineRotation', ({ conversationId }) => {
          this.keys.declinedRotations.push({ by: keyOf(caller), conversationId });
          return {};
        }),
        listMessages: answer('listMessages', ({ conversationId, afterSequence, limit }) => {
          const all = (this.messages.get(conversationId) ?? []).filter(({ sequence }) => sequence > afterSequence);
          const messages = all.slice(0, limit || 100);
          return { messages, more: messages.length < all.length };
        }),
        // The cursor is where each conversation stood.
        listChanges: answer('listChanges', ({ cursor }) => {
          const before = new Map<string, string>(cursor === '' ? [] : JSON.parse(cursor));
          const mine = [...this.conversations.values()].filter(({ members }) =>
            members.some(({ userId }) => userId === user),
          );
          const now = mine.map(({ conversationId, epoch, rosterVersion }) => {
            const lastSequence = BigInt(this.messages.get(conversationId)?.length ?? 0);
            return { conversationId, epoch, rosterVersion, lastSequence };
          });
          const standOf = (each: (typeof now)[number]) => `${each.epoch} ${each.rosterVersion} ${each.lastSequence}`;
          const nextCursor = JSON.stringify(now.map((each) => [each.conversationId, standOf(each)]));
          return { changes: now.filter((each) => before.get(each.conversationId) !== standOf(each)), nextCursor };
        }),
      });
      service(SessionService, {
        getInitialSession: answer('getInitialSession', ({ conversationId, sessionId }) => {
          const { session, envelopes } = this.session(sessionId);
          const envelope = envelopes.get(keyOf(caller))?.at(-1);
          const { signedHeader } = session;
          if (!envelope || !signedHeader) throw this.miss(caller, conversationId, sessionId);
          const { header, epoch, initiator } = parseHeader(signedHeader.header);
          return {
            sessionId,
            epoch,
            signedHeader,
            initiator,
            initiatorIdentityKey: header.initiatorIdentityKey,
            initiatorSigningKey: header.initiatorSigningKey,
            initiatorEphemeralKey: header.initiatorEphemeralKey,
            ...(session.initiatorCertificate && { initiatorCertificate: session.initiatorCertificate }),
            keyCommitment: header.keyCommitment,
            envelope,
          };
        }),
        requestKey: answer('requestKey', (request) => {
          this.requested.push(request.kind);
          const keyRequest = this.openRequest(caller, request.conversationId, request.sessionId, request.kind);
          return { keyRequest, recovery: this.recoveryOf(keyRequest) };
        }),
        listKeyRequests: answer('listKeyRequests', ({ role, includeEnded }) => {
          const mine = ({ requester, state }: KeyRequest) =>
            requester !== undefined && keyOf(requester) === keyOf(caller) && (includeEnded || isOpen(state));
          const offered = ({ requester, state }: KeyRequest) =>
            requester !== undefined && keyOf(requester) !== keyOf(caller) && state === KeyRequestState.OFFERED;
          return { keyRequests: this.keyRequests.filter(role === KeyRequestRole.HOLDER ? offered : mine) };
        }),
        fulfillKeyRequest: answer('fulfillKeyRequest', ({ keyRequestId, envelope }) => {
          const request = this.keyRequests.find((each) => each.keyRequestId === keyRequestId);
          if (!request || !isOpen(request.state)) throw refuse('KEY_REQUEST_ENDED', 'it has ended');
          if (envelope) this.deliver(request, envelope);
          return { keyRequest: request };
        }),
        declineOffer: answer('declineOffer', ({ keyRequestId, reason }) => {
          this.declined.push({ keyRequestId, by: keyOf(caller), reason });
          const request = this.keyRequests.find((each) => each.keyRequestId === keyRequestId);
          const by = this.declined.flatMap((each) => (each.keyRequestId === keyRequestId ? each.by : []));
          const left = [...this.streams.keys()].filter(
            (name) => name !== keyOf(request?.requester as Ref) && !by.includes(name),
          );
          if (request && left.length === 0) this.endRequest(request, 'all_holders_declined');
          return {};
        }),
        requestKeys: answer('requestKeys', (request) => this.keys.requestKeys(caller, request)),
        fulfillKeyRequests: answer('fulfillKeyRequests', (request) => this.keys.fulfillKeyRequests(caller, request)),
        rejectKey: answer('rejectKey', (request) => this.keys.rejectKey(caller, request)),
        listKeyChanges: answer('listKeyChanges', (request) => this.keys.listKeyChanges(caller, request)),
        ackKey: answer('ackKey', ({ sessionId, attempt }) => {
          this.acknowledged.push({ by: keyOf(caller), sessionId, attempt });
          return {};
        }),
      });
      service(PresenceService, {
        attach: (request, call) => this.#attach(caller, request, call.signal),
        heartbeat: answer('heartbeat', () => ({})),
      });
    });
    return { identityKeys: transport, conversation: transport, session: transport, presence: transport };
  }

  count(method: Method): number {
    return this.counts.get(method) ?? 0;
  }

  conversation(conversationId: string): Conversation {
    const conversation = this.conversations.get(conversationId);
    if (!conversation) throw refuse('NOT_FOUND_OR_NOT_PERMITTED', 'not here');
    return conversation;
  }

  session(sessionId: string): StoredSession {
    const session = this.sessions.get(sessionId);
    if (!session) throw refuseMiss({ cause: MissCause.SESSION_UNKNOWN, recovery: Recovery.NO_HOLDER_EXISTS });
    return session;
  }

  device(userId: string, deviceId: string): Device {
    const device = this.devices.get(userId)?.find((each) => each.deviceId === deviceId);
    if (!device) throw new Error(`${userId} ${deviceId} is not registered`);
    return device;
  }

  /** Many deliveries at once are told as one, and not one by one. */
  tellsDeliveries = true;

  /** What greetings say. */
  readonly rotationsDue: string[] = [];

  /** Whether greetings say that nothing else waits; otherwise they say nothing of it. */
  nothingWaits = false;

  /** Whether holders are told of requests as soon as they are made. */
  holdersOnline = true;

  openRequest(requester: Ref, conversationId: string, sessionId: string, kind: KeyRequestKind): KeyRequest {
    const open = this.keyRequests.find(
      (each) => each.sessionId === sessionId && isOpen(each.state) && keyOf(each.requester as Ref) === keyOf(requester),
    );
    if (open) return open;
    const request = create(KeyRequestSchema, {
      keyRequestId: crypto.randomUUID(),
      conversationId,
      sessionId,
      epoch: 1n,
      requester,
      kind,
      state: KeyRequestState.WAITING_FOR_HOLDER,
      attempt: this.keyRequests.filter((each) => each.sessionId === sessionId).length,
    });
    this.keyRequests.push(request);
    if (this.holdersOnline) this.offer(request);
    return request;
  }

  /** Offers a request to every device that is attached. */
  offer(request: KeyRequest): void {
    request.state = KeyRequestState.OFFERED;
    request.attempt += 1;
    const { conversationId, sessionId, keyRequestId, requester, attempt } = request;
    const traceparent = this.traceparents.findLast(({ method }) => method === 'requestKey')?.traceparent ?? '';
    for (const [key, stream] of this.streams) {
      if (requester && key !== keyOf(requester)) {
        const told = { conversationId, sessionId, keyRequestId, attempt, requester, offers: 1, traceparent };
        stream.push({ kind: NotificationKind.KEY_OFFERED, ...told });
      }
    }
  }

  deliver(request: KeyRequest, envelope: Envelope): void {
    const { conversationId, sessionId, keyRequestId } = request;
    const requester = request.requester as Ref;
    const envelopes = this.session(sessionId).envelopes;
    envelopes.set(keyOf(requester), [...(envelopes.get(keyOf(requester)) ?? []), envelope]);
    request.state = KeyRequestState.FULFILLED;
    if (!this.tellsDeliveries) return;
    this.streams
      .get(keyOf(requester))
      ?.push({ kind: NotificationKind.KEY_DELIVERED, conversationId, sessionId, keyRequestId });
  }

  endRequest(request: KeyRequest, because: string): void {
    const { conversationId, sessionId, keyRequestId } = request;
    request.state = KeyRequestState.UNFULFILLABLE;
    request.endedBecause = because;
    this.streams
      .get(keyOf(request.requester as Ref))
      ?.push({ kind: NotificationKind.KEY_REQUEST_ENDED, conversationId, sessionId, keyRequestId });
  }

  miss(caller: Ref, conversationId: string, sessionId: string) {
    const open = this.keyRequests.find(
      (each) => each.sessionId === sessionId && isOpen(each.state) && keyOf(each.requester as Ref) === keyOf(caller),
    );
    return refuseMiss({
      cause: MissCause.DEVICE_ADDED_AFTER_SESSION,
      recovery: open ? this.recoveryOf(open) : Recovery.REQUESTABLE,
      remedy: open ? Remedy.WAIT : Remedy.REQUEST_KEY,
      evidence: { conversation_id: conversationId, session_id: sessionId },
      keyRequestId: open?.keyRequestId ?? '',
      traceId: '0af7651916cd43dd8448eb211c80319c',
      helpUrl: 'docs/reasons/device-added-after-session.md',
    });
  }

  recoveryOf({ state }: KeyRequest): Recovery {
    return state === KeyRequestState.OFFERED ? Recovery.PENDING_OFFERED : Recovery.PENDING_NO_HOLDER_ONLINE;
  }

  epochConflict(current: Conversation) {
    return refuse('EPOCH_CONFLICT', 'another session won this epoch', {
      metadata: { current_epoch: String(current.epoch), current_session_id: current.sessionId },
    });
  }

  #register(caller: Ref, request: RegisterDeviceRequest) {
    const log = this.identities.logOf(caller.userId);
    const devices = this.devices.get(caller.userId) ?? [];
    const { identityKey, signingKey, certificate, signedPrekey, lastResortPrekey } = request;
    if (!certificate || !signedPrekey || !lastResortPrekey) throw refuse('INVALID_FIELD', 'not whole');
    const rootKey = request.rootKeyChange?.newRootKey ?? (log.version > 0n ? log.rootKey : certificate.rootKey);
    if (rootKey.some((byte, i) => byte !== certificate.rootKey[i])) {
      throw refuse('ROOT_KEY_MISMATCH', 'the user has another root key', { metadata: { user_id: caller.userId } });
    }
    const keys = { identityKey, signingKey, certificate, signedPrekey, lastResortPrekey };
    if (!devices.some(({ deviceId }) => deviceId === caller.deviceId)) {
      this.identities.register(caller, create(DeviceSchema, { ...caller, ...keys }), request);
    }
    const counts = this.prekeys.begin(caller, request);
    return { deviceListVersion: log.version, logHead: log.head, counts };
  }

  #claim({ userId, deviceId }: Ref) {
    const device = this.device(userId, deviceId);
    const { identityKey, signingKey, certificate, signedPrekey, lastResortPrekey } = device;
    const pools = this.prekeys.poolsOf(device);
    const [oneTimePrekey] = pools.oneTime.splice(0, 1);
    const [kemPrekey] = pools.kem.splice(0, 1);
    const keys = { identityKey, signingKey, certificate, signedPrekey };
    const bundle = {
      userId,
      deviceId,
      ...keys,
      ...(oneTimePrekey && { oneTimePrekey }),
      kemPrekey: kemPrekey ?? lastResortPrekey,
      kemPrekeyKind: kemPrekey ? PrekeyKind.ONE_TIME : PrekeyKind.LAST_RESORT,
    };
    return { device: { userId, deviceId }, bundle };
  }

  _claimType() {
    return [{}];
  }

  #checkWhole(session: InitialSession | undefined, members: readonly Member[]): void {
    const covered = [
      ...(session?.envelopes ?? []).map(({ recipient }) => recipient),
      ...(session?.withholdings ?? []).map(({ device }) => device),
    ].map((ref) => ref && keyOf(ref));
    const missing = members
      .flatMap(({ userId }) => this.devices.get(userId) ?? [])
      .filter((device) => !device.revokedAt && !covered.includes(keyOf(device)))
      .map(({ userId, deviceId }) => ({ userId, deviceId }));
    if (missing.length === 0) return;
    const details = [{ desc: SessionIncompleteSchema, value: create(SessionIncompleteSchema, { missing }) }];
    throw refuse('SESSION_INCOMPLETE', 'devices are missing', { details });
  }

  #changeRoster(
    request: {
      readonly conversationId: string;
      readonly expectedRosterVersion: bigint;
      readonly signedChange?: SignedRosterChange | undefined;
    },
    rotationDue?: RotationDueReason,
  ): Conversation {
    const conversation = this.rosters.changed(this.conversation(request.conversationId), request, rotationDue);
    this.conversations.set(request.conversationId, conversation);
    return conversation;
  }

  #store(session: InitialSession | undefined) {
    if (!session?.signedHeader) throw refuse('INVALID_FIELD', 'no session');
    const parsed = parseHeader(session.signedHeader.header);
    const envelopes = new Map(session.envelopes.map((each) => [keyOf(each.recipient as Ref), [each]]));
    this.sessions.set(parsed.sessionId, { session, envelopes, withholdings: session.withholdings });
    return parsed;
  }

  async *#attach(caller: Ref, request: AttachRequest, signal: AbortSignal) {
    this.attachCounters.push(request.attachCounter);
    await this.before.get('attach')?.(request as never, caller);
    const queue: Parameters<Stream['push']>[0][] = [];
    let ended: { error?: unknown } | undefined;
    let wake = () => {};
    const stream: Stream = {
      push(notification) {
        queue.push(notification);
        wake();
      },
      end(error) {
        ended = { error };
        wake();
      },
    };
    this.streams.set(keyOf(caller), stream);
    signal.addEventListener('abort', () => stream.end());
    try {
      const rotationsDue = [...this.rotationsDue];
      const greeting = {
        connectionId: crypto.randomUUID(),
        heartbeatIntervalMs: 10_000,
        ...(rotationsDue.length > 0 && { conversationsWaiting: { rotationsDue } }),
        ...(this.nothingWaits && { keysWaiting: {}, conversationsWaiting: { rotationsDue } }),
      };
      yield { message: { case: 'greeting' as const, value: greeting } };
      for (;;) {
        const next = queue.shift();
        if (next) yield { message: { case: 'notification' as const, value: next } };
        else if (ended) break;
        else await new Promise<void>((resolve) => (wake = resolve));
      }
      if (ended?.error) throw ended.error;
    } finally {
      if (this.streams.get(keyOf(caller)) === stream) this.streams.delete(keyOf(caller));
    }
  }
}

export function isOpen(state: KeyRequestState): boolean {
  return state === KeyRequestState.WAITING_FOR_HOLDER || state === KeyRequestState.OFFERED;
}

export { HistoryPolicy };
