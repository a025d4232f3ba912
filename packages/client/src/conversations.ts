import { create, type DescMessage, fromBinary, type MessageShape, toBinary } from '@bufbuild/protobuf';
import type { CallOptions } from '@connectrpc/connect';
import { ConnectError } from '@connectrpc/connect';
import {
  type Conversation,
  ConversationKind,
  type CreateConversationRequest,
  CreateConversationRequestSchema,
  HistoryPolicy,
  type InitialSession,
  MemberRole,
  type PrekeyBundle,
  type RotateSessionRequest,
  RotateSessionRequestSchema,
  RotationDueReason,
  SessionIncompleteSchema,
  type SignedRosterChange,
  type WithheldReason,
  WithheldReasonSchema,
} from '@keytrail/contracts';
import {
  deriveConversationId,
  loggedRootKey,
  parseHeader,
  type Ref,
  type RosterMember,
  type RosterPermissions,
  signRosterChange,
  type UnsignedRosterChange,
} from '@keytrail/crypto';
import { readRefusal } from '@keytrail/rpc/refusal';
import { equalBytes, randomUuid } from './bytes.ts';
import { enumName } from './enum-name.ts';
import { isDecided, RefusalError, RotationLost, SessionRefusedError } from './errors.ts';
import type { FirstContact } from './first-contact.ts';
import { Flights } from './flights.ts';
import { makeSession, type SealingParts, type SessionPlan, type ToldRecipients } from './make-session.ts';
import type { Sessions } from './sessions.ts';
import type { Operation } from './tracing.ts';

export type NewMember = string | { readonly userId: string; readonly role?: MemberRole };

export type RoleName = 'admin' | 'member';
export type HistoryPolicyName = 'own-membership' | 'shared';

/** Which role is needed for what: `member` for everybody. */
export interface Permissions {
  readonly addMembers: RoleName;
  readonly removeMembers: RoleName;
  readonly changePolicy: RoleName;
}

/** What is to change; what is left out stays. */
export interface PolicyChange {
  readonly permissions?: Partial<Permissions>;
  /** Of the epochs from the next one on. */
  readonly historyPolicy?: HistoryPolicyName;
}

export interface NewConversation {
  readonly kind: 'direct' | 'group';
  /** The caller need not be named. */
  readonly members: readonly NewMember[];
  /** `own-membership` by default. */
  readonly historyPolicy?: HistoryPolicyName;
  /** Of a group: `admin` for all of them by default. */
  readonly permissions?: Partial<Permissions>;
  /** A UUID of your own makes the call repeatable over a crash. */
  readonly requestId?: string;
}

export type WithheldReasonName = Exclude<keyof typeof WithheldReason, 'UNSPECIFIED'>;

/** A conversation whose current session this device has just made. */
export type SealedConversation = Conversation & {
  readonly envelopesWritten: number;
  readonly withheld: readonly { readonly device: Ref; readonly reason: WithheldReasonName }[];
};

export interface ConversationParts extends SealingParts {
  readonly sessions: Sessions;
  readonly isAttached: () => boolean;
  /** Called with whatever answer says that a rotation is due. */
  readonly onRotationDue: (conversationId: string) => void;
  /** Called with the session that won an epoch this device wanted. */
  readonly onRotationLost: (conversationId: string, sessionId: string) => void;
}

const triesAtMost = 5;
/** Refusals of a session that another session, made afresh, can cure. */
const curable = new Set(['SESSION_INCOMPLETE', 'SESSION_ABORTED', 'SESSION_CONFLICT']);

/** Conversations, their rosters and their epochs. */
export class Conversations {
  readonly #parts: ConversationParts;
  readonly #known = new Map<string, Conversation>();
  readonly #rotations = new Flights<SealedConversation>();

  constructor(parts: ConversationParts) {
    this.#parts = parts;
  }

  async get(operation: Operation, conversationId: string): Promise<Conversation> {
    const { calls } = this.#parts;
    const { conversation } = await calls.call(operation, (options) =>
      calls.conversation.getConversation({ conversationId }, options),
    );
    return this.#remember(conversation);
  }

  /**
   * As it is now, once its roster is the one that members signed.
   *
   * @throws RosterRefusedError, DeviceListRefusedError, RefusalError.
   */
  believed(operation: Operation, conversationId: string): Promise<Conversation> {
    return this.#parts.rosters.believed(operation, conversationId, () => this.get(operation, conversationId));
  }

  /** As last seen when notifications keep it current, else asked for. */
  async recent(operation: Operation, conversationId: string): Promise<Conversation> {
    return this.seen(conversationId) ?? this.get(operation, conversationId);
  }

  seen(conversationId: string): Conversation | undefined {
    return this.#parts.isAttached() ? this.#known.get(conversationId) : undefined;
  }

  forget(conversationId: string): void {
    this.#known.delete(conversationId);
  }

  forgetAll(): void {
    this.#known.clear();
  }

  async list(
    operation: Operation,
    page: { pageSize?: number | undefined; pageToken?: string | undefined },
  ): Promise<{ conversations: Conversation[]; nextToken: string }> {
    const { calls } = this.#parts;
    const request = { page: { size: page.pageSize ?? 0, token: page.pageToken ?? '' } };
    const { conversations, nextToken } = await calls.call(operation, (options) =>
      calls.conversation.listConversations(request, options),
    );
    return { conversations, nextToken };
  }

  async create(operation: Operation, wanted: NewConversation): Promise<SealedConversation> {
    const { calls, own, primitives, store } = this.#parts;
    const requestId = wanted.requestId ?? randomUuid(primitives);
    const members = new Map(wanted.members.map((member) => [memberOf(member).userId, memberOf(member)]));
    members.set(own.userId, { userId: own.userId, role: MemberRole.ADMIN });
    const claimed = new Map<string, PrekeyBundle>();
    const contacts = new Map<string, FirstContact>();
    let round = 0;
    const prepare = async (conflict: RefusalError | undefined) => {
      forgetStale(contacts, conflict);
      const plan = {
        conversationId: deriveConversationId(own.userId, requestId),
        epoch: 1n,
        rosterVersion: 1n,
        members: [...members.values()],
        historyPolicy: historyPolicyOf(wanted.historyPolicy),
        previousHeaderHash: new Uint8Array(),
        claimSeed: requestId,
        round,
        claimed,
        contacts,
      };
      round += 1;
      const { initialSession, sessionKey } = await makeSession(this.#parts, operation, plan);
      const kind = wanted.kind === 'direct' ? ConversationKind.DIRECT : ConversationKind.GROUP;
      const signedRoster = signRosterChange(primitives, await own.registered(), {
        conversationId: plan.conversationId,
        rosterVersion: 1n,
        previousHash: new Uint8Array(),
        added: plan.members,
        permissions: permissionsOf(adminsOnly, wanted.permissions),
        historyPolicy: plan.historyPolicy,
        madeAt: this.#parts.clock.now(),
      });
      const request = { requestId, kind, members: plan.members, initialSession, signedRoster };
      return { request: create(CreateConversationRequestSchema, request), sessionKey };
    };
    const send = async (request: CreateConversationRequest): Promise<SealedConversation> => {
      const { conversation, envelopesWritten } = await calls.call(operation, (options) =>
        calls.conversation.createConversation(request, options),
      );
      const { conversationId = '', rosterVersion, rosterHead } = conversation ?? {};
      if (request.signedRoster && rosterVersion === 1n && rosterHead) {
        await this.#parts.rosters.began(conversationId, request.signedRoster, rosterHead);
      }
      return this.#sealed(conversation, request.initialSession, envelopesWritten);
    };
    const upload = new Upload(store, `create ${requestId}`, CreateConversationRequestSchema);
    const pending = await upload.resume();
    // One without a signed roster was prepared by an older build.
    const stale =
      pending !== undefined &&
      (pending.request.signedRoster === undefined || !(await this.#isFresh(operation, pending.request.initialSession)));
    if (stale && (await this.#wasAccepted(operation, pending.request.initialSession))) {
      await this.#own(pending.request.initialSession, pending.sessionKey);
      await upload.done();
      return this.rotate(operation, deriveConversationId(own.userId, requestId));
    }
    if (stale) await upload.done();
    try {
      return await this.#commit(upload, prepare, send, (request) => request.initialSession);
    } catch (error) {
      const existing = await this.#existing(operation, error);
      if (existing !== undefined) return existing;
      // What was given up has arrived in the end.
      if (!stale || !(error instanceof RefusalError) || error.reason !== 'REQUEST_ID_REUSED') throw error;
      return this.rotate(operation, deriveConversationId(own.userId, requestId));
    }
  }

  /** The pair's direct conversation, when somebody made it before: it is as good as the one that was wanted. */
  async #existing(operation: Operation, error: unknown): Promise<SealedConversation | undefined> {
    if (!(error instanceof RefusalError) || error.reason !== 'DIRECT_CONVERSATION_EXISTS') return undefined;
    try {
      const conversation = await this.get(operation, error.metadata.conversation_id ?? '');
      return { ...conversation, envelopesWritten: 0, withheld: [] };
    } catch (failed) {
      if (failed instanceof RefusalError && isDecided(failed)) return undefined;
      throw failed;
    }
  }

  /**
   * Whether a session that was prepared earlier, before a crash perhaps, would be sealed to the same devices today. Of users whose lists are not
   * told, what was seen of their logs counts.
   */
  async #isFresh(operation: Operation, prepared: InitialSession | undefined): Promise<boolean> {
    const { directory, logs, rootKeys } = this.#parts;
    const { header } = parseHeader(prepared?.signedHeader?.header ?? new Uint8Array());
    const sealed = header.deviceLists;
    const lists = await directory.current(
      operation,
      sealed.map(({ userId }) => userId),
    );
    for (const [i, { userId, version }] of lists.entries()) {
      const then = sealed[i]?.version ?? 0n;
      const log = await logs.remembered(userId);
      if (then < log.version || (version > 0n && then !== version)) return false;
      const [pinned, logged] = [await rootKeys.pinned(userId), loggedRootKey(log)];
      if (pinned !== undefined && logged !== undefined && !equalBytes(pinned, logged)) return false;
    }
    return true;
  }

  /** Whether the session is that of its conversation now. */
  async #wasAccepted(operation: Operation, prepared: InitialSession | undefined): Promise<boolean> {
    const { conversationId, sessionId } = parseHeader(prepared?.signedHeader?.header ?? new Uint8Array());
    try {
      return (await this.get(operation, conversationId)).sessionId === sessionId;
    } catch (error) {
      if (error instanceof RefusalError && error.reason === 'NOT_FOUND_OR_NOT_PERMITTED') return false;
      throw error;
    }
  }

  /** One rotation of a conversation at a time; whoever wants one meanwhile gets the same. */
  rotate(operation: Operation, conversationId: string, told?: ToldRecipients): Promise<SealedConversation> {
    return this.#rotations.join(conversationId, operation.signal, (signal) =>
      this.#rotate({ ...operation, signal }, conversationId, told),
    );
  }

  async #rotate(
    operation: Operation,
    conversationId: string,
    told: ToldRecipients | undefined,
  ): Promise<SealedConversation> {
    const { calls, primitives, store } = this.#parts;
    const claimed = new Map<string, PrekeyBundle>();
    const contacts = new Map<string, FirstContact>();
    let round = 0;
    const prepare = async (conflict: RefusalError | undefined) => {
      forgetStale(contacts, conflict);
      const current = await this.believed(operation, conversationId);
      await this.#checkCurrent(current);
      const { epoch: expectedEpoch, rosterVersion: expectedRosterVersion } = current;
      const plan: SessionPlan = {
        conversationId,
        epoch: expectedEpoch + 1n,
        rosterVersion: expectedRosterVersion,
        members: current.members,
        historyPolicy: current.historyPolicy,
        previousHeaderHash: current.headerHash,
        claimSeed: `${conversationId} ${expectedEpoch + 1n}`,
        round,
        claimed,
        contacts,
        told,
      };
      round += 1;
      const { initialSession: session, sessionKey } = await makeSession(this.#parts, operation, plan);
      const requestId = randomUuid(primitives);
      const request = { requestId, conversationId, expectedEpoch, expectedRosterVersion, session };
      return { request: create(RotateSessionRequestSchema, request), sessionKey };
    };
    const send = async (request: RotateSessionRequest): Promise<SealedConversation> => {
      const { conversation, envelopesWritten } = await calls.call(operation, (options) =>
        calls.conversation.rotateSession(request, options),
      );
      return this.#sealed(conversation, request.session, envelopesWritten);
    };
    const upload = new Upload(store, `rotate ${conversationId}`, RotateSessionRequestSchema);
    const pending = await upload.resume();
    if (pending !== undefined && !(await this.#isRotationFresh(operation, pending.request))) {
      // Where it was accepted all the same, this device has its own envelope of it, and the next one takes its place.
      if (await this.#wasAccepted(operation, pending.request.session)) {
        await this.#own(pending.request.session, pending.sessionKey);
      }
      await upload.done();
    }
    try {
      return await this.#commit(upload, prepare, send, (request) => request.session, 'ROSTER_CONFLICT');
    } catch (error) {
      if (!(error instanceof RefusalError) || error.reason !== 'EPOCH_CONFLICT') throw error;
      this.forget(conversationId);
      const lost = new RotationLost(readRefusal(error.cause), error.cause);
      this.#parts.onRotationLost(conversationId, lost.winner.sessionId);
      throw lost;
    }
  }

  async #isRotationFresh(operation: Operation, request: RotateSessionRequest): Promise<boolean> {
    const { rosterVersion } = await this.get(operation, request.conversationId);
    return rosterVersion === request.expectedRosterVersion && (await this.#isFresh(operation, request.session));
  }

  /** The header that the new session names as its forerunner must be the one that this device knows, if it knows one. */
  async #checkCurrent({ conversationId, epoch, headerHash }: Conversation): Promise<void> {
    const known = await this.#parts.sessions.ofEpoch(conversationId, epoch);
    if (known !== undefined && !equalBytes(known.session.headerHash, headerHash)) {
      throw new SessionRefusedError('fork', `the server has another header of epoch ${epoch}`);
    }
  }

  /**
   * Sends a prepared session until it is decided: the same one when the answer got lost, also over a crash; another one when this one cannot
   * be accepted as it is.
   */
  async #commit<D extends DescMessage>(
    upload: Upload<D>,
    prepare: (conflict: RefusalError | undefined) => Promise<Prepared<D>>,
    send: (request: MessageShape<D>) => Promise<SealedConversation>,
    sessionOf: (request: MessageShape<D>) => InitialSession | undefined,
    alsoCurable?: string,
  ): Promise<SealedConversation> {
    let resumed = true;
    let conflict: RefusalError | undefined;
    let prepared = await upload.resume();
    for (let tries = 1; ; tries += 1) {
      if (prepared === undefined) {
        prepared = await prepare(conflict);
        resumed = false;
        await upload.keep(prepared);
      }
      try {
        const conversation = await send(prepared.request);
        await this.#own(sessionOf(prepared.request), prepared.sessionKey);
        await upload.done();
        return conversation;
      } catch (error) {
        // Without a reason nobody decided: it stays, to be sent again.
        if (!isDecided(error)) throw error;
        await upload.done();
        const lostEarlier = resumed && error.reason === 'EPOCH_CONFLICT';
        const again = curable.has(error.reason) || error.reason === alsoCurable || lostEarlier;
        if (!again || tries >= triesAtMost) throw error;
        prepared = undefined;
        conflict = error;
      }
    }
  }

  /** Keeps the key of a session that this device made. */
  async #own(initialSession: InitialSession | undefined, sessionKey: Uint8Array): Promise<void> {
    const { own, store, sessions } = this.#parts;
    const signedHeader = initialSession?.signedHeader;
    if (initialSession === undefined || signedHeader === undefined)
      throw new Error('a session without a header was sent');
    const { conversationId, sessionId, epoch } = parseHeader(signedHeader.header);
    const sealer = { userId: own.userId, deviceId: own.deviceId };
    await sessions.save({
      conversationId,
      sessionId,
      epoch,
      header: signedHeader.header,
      headerSignature: signedHeader.signature,
      sessionKey,
      attempt: 0,
      sealer,
    });
    await store.addSealedTo(
      initialSession.envelopes.flatMap(({ recipient }) =>
        recipient ? [{ userId: recipient.userId, deviceId: recipient.deviceId }] : [],
      ),
    );
  }

  async requestRotation(operation: Operation, conversationId: string): Promise<Conversation> {
    const { calls, primitives } = this.#parts;
    const { epoch: expectedEpoch } = await this.recent(operation, conversationId);
    const request = { requestId: randomUuid(primitives), conversationId, expectedEpoch };
    const { conversation } = await calls.call(operation, (options) =>
      calls.conversation.requestRotation(request, options),
    );
    return this.#remember(conversation);
  }

  addMembers(operation: Operation, conversationId: string, wanted: readonly NewMember[]): Promise<Conversation> {
    const { calls } = this.#parts;
    return this.#changeRoster(operation, conversationId, (current) => {
      const present = new Set(current.members.map(({ userId }) => userId));
      const added = wanted.map(memberOf).filter(({ userId }) => !present.has(userId));
      return {
        settled: added.length === 0,
        content: { added },
        send: (request, options) => calls.conversation.addMembers({ ...request, members: added }, options),
      };
    });
  }

  removeMembers(operation: Operation, conversationId: string, userIds: readonly string[]): Promise<Conversation> {
    const { calls } = this.#parts;
    return this.#changeRoster(operation, conversationId, (current) => {
      const present = new Set(current.members.map(({ userId }) => userId));
      const removed = userIds.filter((userId) => present.has(userId));
      return {
        settled: removed.length === 0,
        content: { removed },
        send: (request, options) => calls.conversation.removeMembers({ ...request, userIds: removed }, options),
      };
    });
  }

  changeRoles(
    operation: Operation,
    conversationId: string,
    wanted: Readonly<Record<string, RoleName>>,
  ): Promise<Conversation> {
    const { calls } = this.#parts;
    return this.#changeRoster(operation, conversationId, (current) => {
      const before = new Map(current.members.map(({ userId, role }) => [userId, role]));
      const roles = Object.entries(wanted)
        .map(([userId, role]) => ({ userId, role: roleOf(role) }))
        .filter(({ userId, role }) => before.get(userId) !== role);
      return {
        settled: roles.length === 0,
        content: { roles },
        send: (request, options) => calls.conversation.changeRoles({ ...request, members: roles }, options),
      };
    });
  }

  changePolicy(operation: Operation, conversationId: string, wanted: PolicyChange): Promise<Conversation> {
    const { calls } = this.#parts;
    return this.#changeRoster(operation, conversationId, (current) => {
      const permissions = wanted.permissions && permissionsOf(current.permissions ?? adminsOnly, wanted.permissions);
      const historyPolicy = wanted.historyPolicy && historyPolicyOf(wanted.historyPolicy);
      const content = { ...(permissions && { permissions }), ...(historyPolicy && { historyPolicy }) };
      return {
        settled: permissions === undefined && historyPolicy === undefined,
        content,
        send: (request, options) => calls.conversation.changePolicy({ ...request, ...content }, options),
      };
    });
  }

  /**
   * Signs a change of the roster as it is now, and makes it. When somebody else was first, what is left of it to do is signed anew; nothing is
   * left when the others did just that.
   */
  async #changeRoster(
    operation: Operation,
    conversationId: string,
    change: (current: Conversation) => RosterWish,
  ): Promise<Conversation> {
    const { calls, primitives, own, clock } = this.#parts;
    for (let tries = 1; ; tries += 1) {
      const current = await this.believed(operation, conversationId);
      const { settled, content, send } = change(current);
      if (settled) return current;
      const signedChange = signRosterChange(primitives, await own.registered(), {
        conversationId,
        rosterVersion: current.rosterVersion + 1n,
        previousHash: current.rosterHead,
        madeAt: clock.now(),
        ...content,
      });
      const requestId = randomUuid(primitives);
      const request = { requestId, conversationId, expectedRosterVersion: current.rosterVersion, signedChange };
      try {
        const { conversation } = await calls.call(operation, (options) => send(request, options));
        return this.#remember(conversation);
      } catch (error) {
        const conflict = error instanceof RefusalError && error.reason === 'ROSTER_CONFLICT';
        if (!conflict || tries >= triesAtMost) throw error;
      }
    }
  }

  #remember(conversation: Conversation | undefined): Conversation {
    if (conversation === undefined) throw new Error('the answer has no conversation');
    const before = this.#known.get(conversation.conversationId);
    const older =
      before !== undefined && (conversation.epoch < before.epoch || conversation.rosterVersion < before.rosterVersion);
    if (!older) this.#known.set(conversation.conversationId, conversation);
    if (!older && conversation.rotationDue !== RotationDueReason.UNSPECIFIED) {
      this.#parts.onRotationDue(conversation.conversationId);
    }
    return conversation;
  }

  #sealed(
    answered: Conversation | undefined,
    session: InitialSession | undefined,
    envelopesWritten: number,
  ): SealedConversation {
    const conversation = this.#remember(answered);
    const withheld = (session?.withholdings ?? []).flatMap(({ device, reason }) =>
      device
        ? [
            {
              device: { userId: device.userId, deviceId: device.deviceId },
              reason: enumName(WithheldReasonSchema, reason) as WithheldReasonName,
            },
          ]
        : [],
    );
    return { ...conversation, envelopesWritten, withheld };
  }
}

/**
 * Who was claimed from stays claimed from when a session is made once more; only of users whose devices the conflict names is the claim of no use.
 */
function forgetStale(contacts: Map<string, FirstContact>, conflict: RefusalError | undefined): void {
  if (conflict?.reason !== 'SESSION_INCOMPLETE') return;
  const details = conflict.cause instanceof ConnectError ? conflict.cause.findDetails(SessionIncompleteSchema) : [];
  const [incomplete] = details;
  if (incomplete === undefined) {
    contacts.clear();
    return;
  }
  const { missing, unexpected, staleDeviceLists } = incomplete;
  for (const { userId } of [...missing, ...unexpected, ...staleDeviceLists]) contacts.delete(userId);
}

/** A change of a roster, as it is to be made of the roster that it was wanted for. */
interface RosterWish {
  /** Nothing is left to do. */
  readonly settled: boolean;
  readonly content: Pick<UnsignedRosterChange, 'added' | 'removed' | 'roles' | 'permissions' | 'historyPolicy'>;
  readonly send: (
    request: {
      readonly requestId: string;
      readonly conversationId: string;
      readonly expectedRosterVersion: bigint;
      readonly signedChange: SignedRosterChange;
    },
    options: CallOptions,
  ) => Promise<{ conversation?: Conversation | undefined }>;
}

interface Prepared<D extends DescMessage> {
  readonly request: MessageShape<D>;
  readonly sessionKey: Uint8Array;
}

/** A request that is kept until it was answered. */
class Upload<D extends DescMessage> {
  readonly #store: SealingParts['store'];
  readonly #name: string;
  readonly #schema: D;

  constructor(store: SealingParts['store'], name: string, schema: D) {
    this.#store = store;
    this.#name = name;
    this.#schema = schema;
  }

  async resume(): Promise<Prepared<D> | undefined> {
    const pending = await this.#store.pending(this.#name);
    return pending?.secret && { request: fromBinary(this.#schema, pending.content), sessionKey: pending.secret };
  }

  keep({ request, sessionKey }: Prepared<D>): Promise<void> {
    return this.#store.savePending(this.#name, { content: toBinary(this.#schema, request), secret: sessionKey });
  }

  done(): Promise<void> {
    return this.#store.removePending(this.#name);
  }
}

const adminsOnly: RosterPermissions = {
  addMembers: MemberRole.ADMIN,
  removeMembers: MemberRole.ADMIN,
  changePolicy: MemberRole.ADMIN,
};

function permissionsOf(before: RosterPermissions, wanted: Partial<Permissions> = {}): RosterPermissions {
  const { addMembers, removeMembers, changePolicy } = wanted;
  return {
    addMembers: addMembers ? roleOf(addMembers) : before.addMembers,
    removeMembers: removeMembers ? roleOf(removeMembers) : before.removeMembers,
    changePolicy: changePolicy ? roleOf(changePolicy) : before.changePolicy,
  };
}

function roleOf(name: RoleName): MemberRole {
  return name === 'admin' ? MemberRole.ADMIN : MemberRole.MEMBER;
}

function historyPolicyOf(name: HistoryPolicyName = 'own-membership'): HistoryPolicy {
  return name === 'shared' ? HistoryPolicy.SHARED : HistoryPolicy.OWN_MEMBERSHIP;
}

function memberOf(member: NewMember): RosterMember {
  return typeof member === 'string'
    ? { userId: member, role: MemberRole.MEMBER }
    : { userId: member.userId, role: member.role ?? MemberRole.MEMBER };
}
