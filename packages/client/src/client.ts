import {
  type Conversation,
  type KeyRequest,
  KeyRequestRole,
  KeyRequestState,
  KeyRequestStateSchema,
  type Message,
  type Notification,
  NotificationKind,
  NotificationKindSchema,
  RotationDueReason,
} from '@keytrail/contracts';
import { compareSafetyNumber, noblePrimitives, type Primitives, type SafetyNumber } from '@keytrail/crypto';
import { Attachment } from './attachment.ts';
import { Calls, type RetryOptions, type Transports } from './calls.ts';
import { type Clock, pause, systemClock } from './clock.ts';
import {
  Conversations,
  type NewConversation,
  type NewMember,
  type PolicyChange,
  type RoleName,
  type SealedConversation,
} from './conversations.ts';
import { DeviceChanges } from './device-changes.ts';
import { DeviceLogs } from './device-logs.ts';
import { Directory } from './directory.ts';
import { Emitter } from './emitter.ts';
import { enumName } from './enum-name.ts';
import { DeviceRevokedError, KeyMissError, type RecoveryName, RefusalError } from './errors.ts';
import type { ClientEvents } from './events.ts';
import { makeRecoveryKey, recover, resetIdentity, revokeDevice, safetyNumberWith } from './identity.ts';
import { Inbox, type MessageHandler } from './inbox.ts';
import { KeyAsks } from './key-asks.ts';
import { KeyChanges } from './key-changes.ts';
import { KeyQueue } from './key-queue.ts';
import type { KeyStore } from './key-store.ts';
import { acceptApproval, approveLink, linkCodeOf, makeLinkRequest } from './linking.ts';
import type { DeviceTrust } from './make-session.ts';
import { memoryKeyStore } from './memory-key-store.ts';
import {
  decryptMessages,
  type ReadMessage,
  type ReadOptions,
  readMessages,
  type SentMessage,
  sendMessage,
} from './messages.ts';
import { OfferAnswers } from './offers.ts';
import { type OpenOptions, SessionOpener } from './open-session.ts';
import { Outbox, type WaitingMessage } from './outbox.ts';
import { OwnDevice } from './own-device.ts';
import { PrekeyUpkeep, type Upkeep, type UpkeepOptions } from './prekey-upkeep.ts';
import { SessionReader } from './read-session.ts';
import { registerFirstDevice } from './registration.ts';
import { type ChangedRootKey, changeRootKey } from './root-key-change.ts';
import { type RootKeyPolicy, RootKeys } from './root-keys.ts';
import { RosterLogs, type UnsignedRosters } from './roster-logs.ts';
import { RotationDuty } from './rotation-duty.ts';
import { type OpenSession, Sessions } from './sessions.ts';
import { contextOf, type Operation, type OperationSettings, Tracing } from './tracing.ts';

type LogMethod = (fields: object, message: string) => void;

export interface ClientOptions {
  /** As in the token of the transports. */
  readonly user: string;
  readonly device: string;
  readonly transports: Transports;
  /** `memoryKeyStore()` by default. */
  readonly keyStore?: KeyStore;
  /** `noblePrimitives` by default. */
  readonly primitives?: Primitives;
  /** Refuses every change by default. */
  readonly rootKeyPolicy?: RootKeyPolicy;
  /** Trusts every certified device by default. */
  readonly deviceTrust?: DeviceTrust;
  /** One-time prekeys of each kind to register and refill with, 1 to 100; 50 by default. */
  readonly prekeys?: number;
  /** How prekeys are looked after in the background; `false`: only when `upkeep` or `replenishPrekeys` is called. */
  readonly upkeep?: UpkeepOptions | false;
  /** Whether keys of all sessions that the user may read are asked for in the background; true by default. */
  readonly recoverHistory?: boolean;
  /** Whether rotations that are due are made without being told to; true by default. */
  readonly autoRotate?: boolean | { /** 5000 by default. */ readonly jitterMs?: number };
  /** Refuses rosters that nobody signed by default; `first-use` for conversations from before rosters were signed. */
  readonly unsignedRosters?: UnsignedRosters;
  readonly retry?: RetryOptions;
  readonly log?: { readonly debug?: LogMethod; readonly info?: LogMethod; readonly warn?: LogMethod };
  readonly clock?: Clock;
}

/** A key request, and how it stands. */
export interface RequestedKey {
  readonly keyRequest: KeyRequest | undefined;
  readonly recovery: RecoveryName;
  readonly state: keyof typeof KeyRequestState;
}

/** One device of one user. What it offers is told in README.md. */
export interface KeytrailClient {
  readonly user: string;
  readonly device: string;

  register(): Promise<void>;
  createLinkRequest(): Promise<string>;
  /** @throws LinkTextError. */
  linkCode(link: string): Promise<string>;
  /** @throws LinkCodeMismatchError. */
  approveDevice(link: string, code: string): Promise<string>;
  registerApproved(approval: string): Promise<void>;
  replenishPrekeys(): Promise<{ oneTime: number; kem: number }>;
  /** @throws RefusalError, RegisteredDifferentlyError. */
  upkeep(): Promise<Upkeep>;
  makeRecoveryKey(): Promise<string>;
  /** @throws RecoveryKeyTextError, RecoveryError. */
  recover(recoveryKey: string): Promise<void>;
  revokeDevice(deviceId: string): Promise<void>;
  /** @throws UnknownDevicesError. */
  changeRootKey(options?: { keep?: readonly string[] }): Promise<ChangedRootKey>;
  resetIdentity(): Promise<void>;
  /** @throws RootKeyUnknownError, SafetyNumberOfOneselfError. */
  safetyNumber(userId: string): Promise<SafetyNumber>;
  compareSafetyNumber(userId: string, shown: string): Promise<ReturnType<typeof compareSafetyNumber>>;
  rootKeyOf(userId: string): Promise<Uint8Array | undefined>;
  acceptRootKey(userId: string, rootKey: Uint8Array): Promise<void>;
  /** After safety numbers were compared: what was seen of the user's devices is forgotten, revocations included. */
  forgetDeviceLog(userId: string): Promise<void>;

  createConversation(wanted: NewConversation): Promise<SealedConversation>;
  /** @throws RotationLost. */
  rotate(conversationId: string): Promise<SealedConversation>;
  requestRotation(conversationId: string): Promise<Conversation>;
  addMembers(conversationId: string, members: readonly NewMember[]): Promise<Conversation>;
  removeMembers(conversationId: string, userIds: readonly string[]): Promise<Conversation>;
  changeRoles(conversationId: string, roles: Readonly<Record<string, RoleName>>): Promise<Conversation>;
  changePolicy(conversationId: string, change: PolicyChange): Promise<Conversation>;
  getConversation(conversationId: string): Promise<Conversation>;
  listConversations(page?: {
    pageSize?: number;
    pageToken?: string;
  }): Promise<{ conversations: Conversation[]; nextToken: string }>;

  /** @throws KeyMissError, SessionRefusedError. */
  openSession(conversationId: string, sessionId?: string, options?: OpenOptions): Promise<OpenSession>;
  requestKey(conversationId: string, sessionId: string, kind?: 'MISSING' | 'REWRAP'): Promise<RequestedKey>;
  keyRequests(options?: { includeEnded?: boolean }): Promise<KeyRequest[]>;
  cancelKeyRequest(keyRequestId: string): Promise<KeyRequest | undefined>;

  send(
    conversationId: string,
    plaintext: string | Uint8Array,
    options?: { signal?: AbortSignal },
  ): Promise<SentMessage>;
  messages(conversationId: string, options?: ReadOptions): Promise<ReadMessage[]>;
  /** Decrypts messages that the application has, with the keys that this device has; asks no service for keys. */
  decrypt(conversationId: string, messages: readonly Message[]): Promise<ReadMessage[]>;
  /** Keeps a message until it is sent, which `messageSent` or `messageNotSent` tells. */
  enqueue(conversationId: string, plaintext: string | Uint8Array): Promise<{ id: string }>;
  /** What `enqueue` has kept and is not sent, in its order. */
  outgoing(): Promise<WaitingMessage[]>;
  /** Every message once, in the order of its conversation; returns how to take the handler off again. There is one at a time. */
  onMessage(handler: MessageHandler): () => void;
  /** Pulls what changed, and gives it to the handler of messages; resolves when that is through. */
  receive(): Promise<void>;

  readonly isAttached: boolean;
  /** @throws DeviceRevokedError, NotRegisteredError, RefusalError. */
  attach(): Promise<void>;
  detach(): Promise<void>;
  /** Returns how to take the handler off again. */
  on<Name extends keyof ClientEvents>(name: Name, handler: (event: ClientEvents[Name]) => void): () => void;
  close(): Promise<void>;
}

/** How long a client that is being closed waits for what it still has to say. */
const closeMs = 2_000;

export function createClient(options: ClientOptions): KeytrailClient {
  const { transports, log } = options;
  const store = options.keyStore ?? memoryKeyStore();
  const primitives = options.primitives ?? noblePrimitives;
  const clock = options.clock ?? systemClock;
  const deviceTrust = options.deviceTrust ?? (() => true);
  const events = new Emitter<ClientEvents>((error, name) =>
    log?.warn?.({ err: error, event: name }, 'a handler of the application threw'),
  );
  events.on('fault', ({ during, error }) => log?.warn?.({ err: error, during }, 'work in the background failed'));

  const closing = new AbortController();
  const working = new Set<Promise<unknown>>();
  const background = (during: string, work: Promise<unknown>) => {
    const settled = work
      .catch((error: unknown) => {
        if (!closing.signal.aborted) events.emit('fault', { during, error });
      })
      .finally(() => working.delete(settled));
    working.add(settled);
  };

  const tracing = new Tracing(primitives);
  let revoked = false;
  const onRevoked = () => {
    if (revoked) return;
    revoked = true;
    background('detach', attachment.detach());
    events.emit('revoked', { userId: options.user, deviceId: options.device });
  };
  const onFailure = (error: unknown) => {
    if (isRevocationOf(error, options.device)) onRevoked();
  };
  events.on('fault', ({ error }) => onFailure(error));
  const calls = new Calls(transports, { clock, primitives, retry: options.retry, onFailure });
  const own = new OwnDevice({ userId: options.user, deviceId: options.device }, store);
  const rootKeys = new RootKeys({ store, own, policy: options.rootKeyPolicy, events });
  const logs = new DeviceLogs({ calls, primitives, store, own, rootKeys, events, onRevoked });
  const directory = new Directory({ calls, primitives, rootKeys, logs });
  const sessions = new Sessions(store);
  const unsignedRosters = options.unsignedRosters ?? 'refuse';
  const rosters = new RosterLogs({ calls, primitives, store, rootKeys, logs, directory, events, unsignedRosters });
  const registration = {
    calls,
    primitives,
    store,
    own,
    rootKeys,
    logs,
    directory,
    clock,
    prekeys: options.prekeys ?? 50,
  };
  const sealing = { calls, primitives, store, own, rootKeys, directory, logs, rosters, deviceTrust, clock };
  const reading = { calls, primitives, own, rootKeys, directory, sessions, rosters };
  const isAttached = () => attachment.isAttached;
  const reader = new SessionReader(reading);
  const asks = new KeyAsks({ calls, primitives });
  const opening = { ...reading, reader, asks, tracing, events, clock, isAttached, background };
  const opener = new SessionOpener({ ...opening, onMissing: (name) => keyQueue.raise(name) });
  const recoverHistory = options.recoverHistory ?? true;
  const keyQueue = new KeyQueue({ ...opening, store, recoverHistory });
  const autoRotate = options.autoRotate ?? true;
  const onRotationDue = (conversationId: string) => {
    const { signal } = attachment;
    if (autoRotate !== false && signal) background('rotate when due', rotationDuty.due(conversationId, signal));
  };
  const onRotationLost = (conversationId: string, sessionId: string) =>
    openInBackground('open the session that won', { conversationId, sessionId });
  const conversations = new Conversations({ ...sealing, sessions, isAttached, onRotationLost, onRotationDue });
  const messaging = { ...opening, store, conversations, opener, logs };
  const outbox = new Outbox({ ...messaging, onSent: rotateIfDue }, closing.signal);
  const inbox = new Inbox(messaging, closing.signal);
  events.on('keyDelivered', ({ conversationId }) => inbox.keyArrived(conversationId));
  const offers = new OfferAnswers({ ...sealing, sessions, conversations, tracing, events, opener });
  const jitterMs = (typeof autoRotate === 'object' ? autoRotate.jitterMs : undefined) ?? 5_000;
  const rotationDuty = new RotationDuty({ calls, primitives, clock, own, conversations, events, tracing, jitterMs });
  const keyChanges = new KeyChanges({ calls, store, sessions, tracing, keyQueue, events, openDelivered });
  const upkeep = new PrekeyUpkeep({
    ...registration,
    events,
    options: options.upkeep || {},
    run: (name, work) => run(name, work),
  });
  const deviceChanges = new DeviceChanges({
    primitives,
    clock,
    jitterMs: (options.upkeep === false ? undefined : options.upkeep?.jitterMs) ?? 2_000,
    // What the log says is told by events; a changed root key is judged.
    async look(userIds, signal) {
      await tracing.run('look at devices', { signal }, (operation) => directory.current(operation, userIds));
    },
    background,
  });
  const attachment = new Attachment({
    calls,
    store,
    clock,
    events,
    onAttached(signal, { prekeyStatus, keysWaiting, conversationsWaiting }) {
      conversations.forgetAll();
      opener.hints.wakeAll();
      background('answer offers', offers.attached(signal, keysWaiting));
      background('look for keys', keyQueue.attached(signal));
      background('collect delivered keys', keyChanges.pull(signal, keysWaiting));
      if (autoRotate !== false && conversationsWaiting) {
        background('rotate when due', rotationDuty.allDue(conversationsWaiting.rotationsDue, signal));
      }
      background('send messages that waited', outbox.resume());
      background('deliver messages', inbox.attached(conversationsWaiting));
      if (options.upkeep !== false) upkeep.attached(signal, prekeyStatus);
    },
    onDetached: () => conversations.forgetAll(),
    onNotification,
  });

  /** What was refused of this user may be good now, and comes without being asked for. */
  function onTrustChanged(): void {
    inbox.trustChanged();
    background('look for keys', keyQueue.lookAgain());
  }

  function rotateIfDue(conversationId: string, { rotationDue }: SentMessage): void {
    if (rotationDue !== RotationDueReason.UNSPECIFIED) onRotationDue(conversationId);
  }

  function run<T>(name: string, work: (operation: Operation) => Promise<T>, signal?: AbortSignal): Promise<T> {
    const stop = signal ? AbortSignal.any([signal, closing.signal]) : closing.signal;
    return tracing.run(name, { signal: stop }, work);
  }

  /** For what has to do with the long-term keys of this device or the root key: one at a time. */
  function runAlone<T>(name: string, work: (operation: Operation) => Promise<T>): Promise<T> {
    return run(name, (operation) => own.alone(() => work(operation)));
  }

  function openInBackground(
    during: string,
    name: { conversationId: string; sessionId: string },
    within?: OperationSettings['within'],
  ): void {
    background(during, opener.open(name, { signal: closing.signal }, within));
  }

  function onNotification(told: Notification, signal: AbortSignal): void {
    const { kind, conversationId, sessionId, keyRequestId } = told;
    const kindName = enumName(NotificationKindSchema, kind);
    log?.debug?.({ kind: kindName, conversationId, sessionId, keyRequestId }, 'notified');
    const notification = { ...told, traceparent: tracing.received(kindName, told.traceparent) };
    switch (kind) {
      case NotificationKind.KEY_OFFERED:
        background('answer offer', offers.answerOffer(notification, signal));
        break;
      case NotificationKind.KEY_DELIVERED:
        if (sessionId === '') pullKeyChanges(signal);
        else onKeyDelivered(notification);
        break;
      case NotificationKind.KEY_REQUEST_ENDED:
        if (sessionId === '') {
          pullKeyChanges(signal);
          break;
        }
        opener.hint({ conversationId, sessionId });
        events.emit('keyRequestEnded', { conversationId, sessionId, keyRequestId });
        if (keyQueue.wants({ conversationId, sessionId })) background('collect key', keyChanges.pull(signal));
        break;
      case NotificationKind.MESSAGE_ADDED:
        events.emit('messageAdded', { conversationId });
        inbox.due(conversationId);
        break;
      case NotificationKind.CONVERSATION_CHANGED:
        conversations.forget(conversationId);
        events.emit('conversationChanged', { conversationId });
        break;
      case NotificationKind.ROTATION_DUE:
        conversations.forget(conversationId);
        events.emit('rotationDue', { conversationId });
        onRotationDue(conversationId);
        break;
      case NotificationKind.ROTATION_ASKED:
        conversations.forget(conversationId);
        if (autoRotate === false) break;
        background(
          'rotate when asked',
          rotationDuty.asked(conversationId, signal, contextOf(notification.traceparent)),
        );
        break;
      case NotificationKind.DEVICES_CHANGED:
        deviceChanges.due(notification.userId, signal);
        break;
      case NotificationKind.PREKEYS_LOW:
        upkeep.due();
        break;
    }
  }

  /** Many keys at once: those who wait for one look themselves. */
  function pullKeyChanges(signal: AbortSignal): void {
    opener.hints.wakeAll();
    background('collect delivered keys', keyChanges.pull(signal));
  }

  /** Whoever waits for the key goes on; when nobody does, it is fetched all the same. */
  function onKeyDelivered({ conversationId, sessionId, keyRequestId, traceparent }: Notification): void {
    const name = { conversationId, sessionId };
    if (opener.hint(name)) return;
    if (keyQueue.wants(name)) background('collect key', keyQueue.collect(name, contextOf(traceparent)));
    else background('open delivered key', openDelivered(name, keyRequestId, contextOf(traceparent)));
  }

  async function openDelivered(
    name: { conversationId: string; sessionId: string },
    keyRequestId: string,
    within?: OperationSettings['within'],
  ): Promise<void> {
    if (await sessions.find(name.conversationId, name.sessionId)) return;
    const { held, open } = await opener.open(name, { signal: closing.signal }, within);
    // A recovery, which a wrong envelope starts, has told it already.
    if (open.origin !== 'read') return;
    const { attempt, sealer } = held;
    events.emit('keyDelivered', { ...name, keyRequestId, sealer, attempt });
    await tracing.run('acknowledge key', { within, signal: closing.signal }, (operation) =>
      calls.call(operation, (callOptions) => calls.session.ackKey({ ...name, attempt }, callOptions)),
    );
  }

  function listKeyRequests(includeEnded: boolean, signal?: AbortSignal): Promise<KeyRequest[]> {
    return run(
      'list key requests',
      async (operation) => {
        const all: KeyRequest[] = [];
        let token = '';
        do {
          const request = { role: KeyRequestRole.REQUESTER, includeEnded, page: { size: 200, token } };
          const page = await calls.call(operation, (options) => calls.session.listKeyRequests(request, options));
          all.push(...page.keyRequests);
          token = page.nextToken;
        } while (token !== '');
        return all;
      },
      signal,
    );
  }

  return {
    user: options.user,
    device: options.device,

    register: () => runAlone('register device', (operation) => registerFirstDevice(registration, operation)),
    createLinkRequest: () => own.alone(() => makeLinkRequest(registration)),
    linkCode: (link) => linkCodeOf(registration, link),
    approveDevice: (link, code) => own.alone(() => approveLink(registration, link, code)),
    registerApproved: (approval) =>
      runAlone('register device', (operation) => acceptApproval(registration, operation, approval)),
    makeRecoveryKey: () => runAlone('make recovery key', (operation) => makeRecoveryKey(registration, operation)),
    recover: (text) => runAlone('recover', (operation) => recover(registration, operation, text)),
    async revokeDevice(deviceId) {
      await runAlone('revoke device', (operation) => revokeDevice(registration, operation, deviceId));
      if (deviceId === options.device) onRevoked();
    },
    changeRootKey: ({ keep } = {}) =>
      runAlone('change root key', (operation) => changeRootKey(registration, operation, keep)),
    resetIdentity: () => runAlone('reset identity', (operation) => resetIdentity(registration, operation)),
    safetyNumber: (userId) => run('safety number', (operation) => safetyNumberWith(registration, operation, userId)),
    compareSafetyNumber: (userId, shown) =>
      run('safety number', async (operation) =>
        compareSafetyNumber(await safetyNumberWith(registration, operation, userId), shown),
      ),
    async replenishPrekeys() {
      const { replenished } = await upkeep.upkeep({ check: false, fill: true });
      return replenished ?? { oneTime: 0, kem: 0 };
    },
    upkeep: () => upkeep.upkeep(),
    rootKeyOf: (userId) => rootKeys.pinned(userId),
    async acceptRootKey(userId, rootKey) {
      await rootKeys.accept(userId, rootKey);
      await logs.accepted(userId, rootKey);
      onTrustChanged();
    },
    async forgetDeviceLog(userId) {
      await logs.forget(userId);
      onTrustChanged();
    },

    createConversation: (wanted) => run('create conversation', (operation) => conversations.create(operation, wanted)),
    rotate: (conversationId) => run('rotate session', (operation) => conversations.rotate(operation, conversationId)),
    requestRotation: (conversationId) =>
      run('request rotation', (operation) => conversations.requestRotation(operation, conversationId)),
    addMembers: (conversationId, members) =>
      run('add members', (operation) => conversations.addMembers(operation, conversationId, members)),
    removeMembers: (conversationId, userIds) =>
      run('remove members', (operation) => conversations.removeMembers(operation, conversationId, userIds)),
    changeRoles: (conversationId, roles) =>
      run('change roles', (operation) => conversations.changeRoles(operation, conversationId, roles)),
    changePolicy: (conversationId, change) =>
      run('change policy', (operation) => conversations.changePolicy(operation, conversationId, change)),
    getConversation: (conversationId) =>
      run('get conversation', (operation) => conversations.get(operation, conversationId)),
    listConversations: (page = {}) => run('list conversations', (operation) => conversations.list(operation, page)),

    async openSession(conversationId, sessionId, how = {}) {
      const signal = how.signal ? AbortSignal.any([how.signal, closing.signal]) : closing.signal;
      const name = { conversationId, sessionId: sessionId ?? (await currentSessionOf(conversationId, signal)) };
      return (await opener.open(name, { ...how, signal })).open;
    },
    requestKey: (conversationId, sessionId, kind = 'MISSING') =>
      run('request key', async (operation) => {
        const ask = { conversationId, sessionId, kind, priority: 'FOREGROUND' } as const;
        const { keyRequest, recovery } = await asks.one(operation, ask);
        const state = keyRequest?.state ?? KeyRequestState.UNSPECIFIED;
        return { keyRequest, recovery, state: enumName(KeyRequestStateSchema, state) as keyof typeof KeyRequestState };
      }),
    keyRequests: ({ includeEnded = false } = {}) => listKeyRequests(includeEnded),
    cancelKeyRequest: (keyRequestId) =>
      run('cancel key request', async (operation) => {
        const { keyRequest } = await calls.call(operation, (callOptions) =>
          calls.session.cancelKeyRequest({ keyRequestId }, callOptions),
        );
        return keyRequest;
      }),

    send: (conversationId, plaintext, { signal } = {}) =>
      run(
        'send message',
        (operation) => sendMessage(messaging, operation, conversationId, bytesOf(plaintext)),
        signal,
      ).then((sent) => {
        rotateIfDue(conversationId, sent);
        return sent;
      }),
    messages: (conversationId, how = {}) =>
      run('read messages', (operation) => readMessages(messaging, operation, conversationId, how), how.signal),
    decrypt: (conversationId, given) =>
      run('decrypt messages', (operation) =>
        decryptMessages(messaging, operation, conversationId, given, { recover: false }),
      ),
    enqueue: (conversationId, plaintext) => outbox.enqueue(conversationId, bytesOf(plaintext)),
    outgoing: () => outbox.waiting(),
    onMessage(handler) {
      const off = inbox.handle(handler);
      if (attachment.isAttached) inbox.pullInBackground();
      return off;
    },
    receive: () => inbox.pull(),

    get isAttached() {
      return attachment.isAttached;
    },
    async attach() {
      if (revoked) throw new DeviceRevokedError();
      await own.registered();
      await attachment.attach();
    },
    detach: () => attachment.detach(),
    on: (name, handler) => events.on(name, handler),
    async close() {
      await attachment.detach();
      closing.abort(new Error('the client was closed'));
      const waiting = new AbortController();
      await Promise.race([Promise.all(working), pause(clock, closeMs, waiting.signal, true).catch(() => {})]);
      waiting.abort();
      transports.close?.();
    },
  };

  async function currentSessionOf(conversationId: string, signal: AbortSignal): Promise<string> {
    const current = await run(
      'get conversation',
      (operation) => conversations.recent(operation, conversationId),
      signal,
    );
    return current.sessionId;
  }
}

/** Some call or stream was refused because the device that made it is revoked; a miss may tell it, too. */
function isRevocationOf(error: unknown, deviceId: string): boolean {
  if (error instanceof KeyMissError) return error.cause === 'DEVICE_REVOKED' && error.evidence.device_id === deviceId;
  return error instanceof RefusalError && error.reason === 'DEVICE_REVOKED' && error.metadata.device_id === deviceId;
}

function bytesOf(text: string | Uint8Array): Uint8Array {
  return typeof text === 'string' ? new TextEncoder().encode(text) : text;
}
