import { create } from '@bufbuild/protobuf';
import { timestampFromDate } from '@bufbuild/protobuf/wkt';
import {
  type Conversation,
  ConversationKind,
  ConversationSchema,
  type HistoryPolicy,
  type MemberRole,
  type RotationDueReason,
} from '@keytrail/contracts';
import type { RosterPermissions } from '@keytrail/crypto';
import { type Queryable, statement, type Transaction } from '@keytrail/storage';
import type { RosterMember } from '../domain/roster.ts';

/** Where a conversation stands. */
export interface ConversationState {
  readonly conversationId: string;
  readonly kind: ConversationKind;
  /** Of the epochs to come; each epoch has its own. */
  readonly historyPolicy: HistoryPolicy;
  readonly epoch: bigint;
  readonly sessionId: string;
  readonly rosterVersion: bigint;
  /** Hash of the newest entry of the roster's log: 32 bytes. */
  readonly rosterHead: Uint8Array;
  readonly permissions: RosterPermissions;
  readonly rotationDue: RotationDueReason;
  readonly minSendEpoch: bigint;
  readonly lastSequence: bigint;
  readonly createdAt: Date;
  /** When the other member of a DIRECT conversation was erased. */
  readonly closedAt?: Date | undefined;
}

/** Who writes: goes onto each row. */
export interface Writer {
  readonly build: string;
  /** 32 hexadecimal digits. */
  readonly traceId: string;
}

interface StateRow {
  conversation_id: string;
  kind: ConversationKind;
  history_policy: HistoryPolicy;
  epoch: bigint;
  session_id: string;
  roster_version: bigint;
  roster_head: Buffer;
  may_add: MemberRole;
  may_remove: MemberRole;
  may_change_policy: MemberRole;
  rotation_due: RotationDueReason;
  min_send_epoch: bigint;
  last_sequence: bigint;
  created_at: Date;
  closed_at: Date | null;
}

interface MemberRow {
  user_id: string;
  role: MemberRole;
  from_epoch: bigint;
}

const stateColumns = `conversation_id, kind, history_policy, epoch, session_id, roster_version, roster_head,
  may_add, may_remove, may_change_policy, rotation_due, min_send_epoch, last_sequence, created_at, closed_at`;

const find = statement('conversation_find', `SELECT ${stateColumns} FROM conversations WHERE conversation_id = $1`);

const lock = statement(
  'conversation_lock',
  `SELECT ${stateColumns} FROM conversations WHERE conversation_id = $1 FOR NO KEY UPDATE`,
);

const findDirect = statement(
  'conversation_find_direct',
  'SELECT conversation_id FROM conversations WHERE kind = 1 AND direct_low = $1 AND direct_high = $2',
);

const headerHash = statement(
  'epoch_header_hash',
  'SELECT header_hash FROM epochs WHERE conversation_id = $1 AND epoch = $2',
);

const members = statement(
  'roster_read',
  `SELECT user_id, role, from_epoch FROM memberships
   WHERE conversation_id = $1 AND to_epoch IS NULL ORDER BY user_id`,
);

const insert = statement(
  'conversation_insert',
  `INSERT INTO conversations (conversation_id, kind, direct_low, direct_high, history_policy, epoch, session_id,
     roster_version, may_add, may_remove, may_change_policy, writer_build, created_trace_id, last_write_trace_id)
   VALUES ($1, $2, $3, $4, $5, 1, $6, 1, $9, $10, $11, $7, $8, $8)
   ON CONFLICT DO NOTHING RETURNING true AS inserted`,
);

const advanceEpoch = statement(
  'conversation_advance_epoch',
  `UPDATE conversations
   SET epoch = epoch + 1, session_id = $4, rotation_due = 0, writer_build = $5, last_write_trace_id = $6
   WHERE conversation_id = $1 AND epoch = $2 AND roster_version = $3
   RETURNING true AS advanced`,
);

const advanceRoster = statement(
  'conversation_advance_roster',
  `UPDATE conversations
   SET roster_version = roster_version + 1, rotation_due = $3, min_send_epoch = greatest(min_send_epoch, $4),
       writer_build = $5, last_write_trace_id = $6
   WHERE conversation_id = $1 AND roster_version = $2
   RETURNING roster_version`,
);

const changePolicy = statement(
  'conversation_change_policy',
  `UPDATE conversations
   SET roster_version = roster_version + 1, rotation_due = $3, history_policy = $4, may_add = $5, may_remove = $6,
       may_change_policy = $7, writer_build = $8, last_write_trace_id = $9
   WHERE conversation_id = $1 AND roster_version = $2
   RETURNING roster_version`,
);

const markRotationDue = statement(
  'conversation_mark_rotation_due',
  `UPDATE conversations SET rotation_due = $2, writer_build = $3, last_write_trace_id = $4 WHERE conversation_id = $1`,
);

export async function findConversation(db: Queryable, conversationId: string): Promise<ConversationState | undefined> {
  const [row] = await db.query<StateRow>(find, [conversationId]);
  return row && stateOf(row);
}

/** Locks the conversation until the end of the transaction: rosters, epochs and sequences change one after the other. */
export async function lockConversation(
  tx: Transaction,
  conversationId: string,
): Promise<ConversationState | undefined> {
  const [row] = await tx.query<StateRow>(lock, [conversationId]);
  return row && stateOf(row);
}

/** The direct conversation of a pair of users, if they have one. */
export async function findDirectConversation(db: Queryable, pair: readonly string[]): Promise<string | undefined> {
  const [row] = await db.query<{ conversation_id: string }>(findDirect, directPair(pair));
  return row?.conversation_id;
}

/** The hash of the header of an epoch's session: 32 bytes, SHA-256. */
export async function headerHashOf(db: Queryable, conversationId: string, epoch: bigint): Promise<Uint8Array> {
  const [row] = await db.query<{ header_hash: Buffer }>(headerHash, [conversationId, epoch]);
  if (!row) throw new Error(`conversation ${conversationId} has no session at epoch ${epoch}`);
  return new Uint8Array(row.header_hash);
}

/** Current members, in the order of their user ids. */
export async function readRoster(
  db: Queryable,
  conversationId: string,
): Promise<(RosterMember & { readonly fromEpoch: bigint })[]> {
  const rows = await db.query<MemberRow>(members, [conversationId]);
  return rows.map((row) => ({
    userId: row.user_id,
    role: row.role,
    fromEpoch: row.from_epoch,
  }));
}

/** The conversation as its members see it, read within a transaction that has it locked. */
export async function readConversation(tx: Transaction, conversationId: string): Promise<Conversation> {
  const state = await findConversation(tx, conversationId);
  if (!state) throw new Error(`conversation ${conversationId} is gone`);
  return create(ConversationSchema, {
    conversationId: state.conversationId,
    kind: state.kind,
    epoch: state.epoch,
    sessionId: state.sessionId,
    rosterVersion: state.rosterVersion,
    rosterHead: state.rosterHead,
    permissions: state.permissions,
    members: (await readRoster(tx, conversationId)).map(({ userId, role, fromEpoch }) => ({ userId, role, fromEpoch })),
    historyPolicy: state.historyPolicy,
    rotationDue: state.rotationDue,
    headerHash: await headerHashOf(tx, conversationId, state.epoch),
    lastSequence: state.lastSequence,
    createdAt: timestampFromDate(state.createdAt),
    ...(state.closedAt && { closedAt: timestampFromDate(state.closedAt) }),
  });
}

export interface NewConversation {
  readonly conversationId: string;
  readonly kind: ConversationKind;
  readonly historyPolicy: HistoryPolicy;
  readonly permissions: RosterPermissions;
  readonly sessionId: string;
  readonly members: readonly RosterMember[];
}

/** False when there is such a conversation already, by its id or by its pair of members. */
export async function insertConversation(tx: Transaction, made: NewConversation, by: Writer): Promise<boolean> {
  const pair =
    made.kind === ConversationKind.DIRECT ? directPair(made.members.map(({ userId }) => userId)) : [null, null];
  const rows = await tx.query(insert, [
    made.conversationId,
    made.kind,
    ...pair,
    made.historyPolicy,
    made.sessionId,
    by.build,
    by.traceId,
    made.permissions.addMembers,
    made.permissions.removeMembers,
    made.permissions.changePolicy,
  ]);
  return rows.length > 0;
}

/** Compare-and-set of the next epoch; false when epoch or roster moved. */
export async function advanceToSession(
  tx: Transaction,
  at: { readonly conversationId: string; readonly epoch: bigint; readonly rosterVersion: bigint },
  sessionId: string,
  by: Writer,
): Promise<boolean> {
  const rows = await tx.query(advanceEpoch, [
    at.conversationId,
    at.epoch,
    at.rosterVersion,
    sessionId,
    by.build,
    by.traceId,
  ]);
  return rows.length > 0;
}

/** Compare-and-set of the next roster version, which it returns; undefined when the roster moved. */
export async function advanceToRoster(
  tx: Transaction,
  at: { readonly conversationId: string; readonly rosterVersion: bigint },
  due: { readonly rotationDue: RotationDueReason; readonly minSendEpoch: bigint },
  by: Writer,
): Promise<bigint | undefined> {
  const [row] = await tx.query<{ roster_version: bigint }>(advanceRoster, [
    at.conversationId,
    at.rosterVersion,
    due.rotationDue,
    due.minSendEpoch,
    by.build,
    by.traceId,
  ]);
  return row?.roster_version;
}

/** Compare-and-set of a roster version that changes who may do what, or the history policy of the epochs to come; undefined when the roster moved. */
export async function advanceToPolicy(
  tx: Transaction,
  at: { readonly conversationId: string; readonly rosterVersion: bigint },
  { permissions, historyPolicy }: Pick<ConversationState, 'permissions' | 'historyPolicy'>,
  rotationDue: RotationDueReason,
  by: Writer,
): Promise<bigint | undefined> {
  const [row] = await tx.query<{ roster_version: bigint }>(changePolicy, [
    at.conversationId,
    at.rosterVersion,
    rotationDue,
    historyPolicy,
    permissions.addMembers,
    permissions.removeMembers,
    permissions.changePolicy,
    by.build,
    by.traceId,
  ]);
  return row?.roster_version;
}

export async function setRotationDue(
  tx: Transaction,
  conversationId: string,
  due: RotationDueReason,
  by: Writer,
): Promise<void> {
  await tx.query(markRotationDue, [conversationId, due, by.build, by.traceId]);
}

function directPair(userIds: readonly string[]): string[] {
  return [...userIds].sort();
}

function stateOf(row: StateRow): ConversationState {
  return {
    conversationId: row.conversation_id,
    kind: row.kind,
    historyPolicy: row.history_policy,
    epoch: row.epoch,
    sessionId: row.session_id,
    rosterVersion: row.roster_version,
    rosterHead: row.roster_head,
    permissions: {
      addMembers: row.may_add,
      removeMembers: row.may_remove,
      changePolicy: row.may_change_policy,
    },
    rotationDue: row.rotation_due,
    minSendEpoch: row.min_send_epoch,
    lastSequence: row.last_sequence,
    createdAt: row.created_at,
    closedAt: row.closed_at ?? undefined,
  };
}
