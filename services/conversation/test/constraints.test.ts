import { randomBytes, randomUUID } from 'node:crypto';
import { ConversationKind } from '@keytrail/contracts';
import {
  isCheckViolation,
  isForeignKeyViolation,
  isNotNullViolation,
  isUniqueViolation,
  statement,
} from '@keytrail/storage';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { createdBy, type Harness, message, rotatedBy, startHarness } from './harness.ts';

let harness: Harness;
let group: string;
let direct: string;
let sessionId: string;
let userId: string;

beforeAll(async () => {
  harness = await startHarness();
  const [alice, bob] = [await harness.user(), await harness.user()];
  userId = alice.userId;
  const created = await createdBy(harness, alice.device, [bob]);
  group = created.conversation.conversationId;
  await alice.device.client.sendMessage(message(alice.device, created.session, 0n));
  sessionId = (await rotatedBy(harness, alice.device, created.conversation)).session.sessionId;
  const pair = await createdBy(harness, alice.device, [bob], { kind: ConversationKind.DIRECT });
  direct = pair.conversation.conversationId;
}, 120_000);

afterAll(() => harness?.[Symbol.asyncDispose]());

let statements = 0;

/** Runs statements in one transaction and returns what it failed with; nothing of it stays. */
async function failureOf(...run: readonly (readonly [text: string, ...values: unknown[]])[]): Promise<unknown> {
  const accepted = new Error('was not refused');
  const failure = await harness.db
    .transaction(async (tx) => {
      for (const [text, ...values] of [...run, ['SET CONSTRAINTS ALL IMMEDIATE'] as const]) {
        statements += 1;
        await tx.query(statement(`constraint_${statements}`, text), values);
      }
      throw accepted;
    })
    .catch((error: unknown) => error);
  if (failure === accepted) throw accepted;
  return failure;
}

const newConversation = (conversationId: string, columns = '') =>
  [
    `INSERT INTO conversations (conversation_id, kind, history_policy, epoch, session_id, roster_version, writer_build,
     created_trace_id, last_write_trace_id${columns && `, ${columns.split('=')[0]}`})
   VALUES ($1, 2, 1, 1, 's1', 1, 'b', '', ''${columns && `, ${columns.split('=')[1]}`})`,
    conversationId,
  ] as const;
const decided = (conversationId: string, session: string, outcome: string) =>
  [
    `INSERT INTO session_decisions (conversation_id, session_id, outcome, writer_build, trace_id) VALUES ($1, $2, $3, 'b', '')`,
    conversationId,
    session,
    outcome,
  ] as const;
const epoch = (
  conversationId: string,
  number: bigint,
  session: string,
  previous: Buffer | null,
  written = 1,
  expected = 1,
) =>
  [
    `INSERT INTO epochs (conversation_id, epoch, session_id, roster_version, header_hash, previous_header_hash,
       initiator_user_id, initiator_device_id, envelopes_written, envelopes_expected, writer_build, trace_id, history_policy)
     VALUES ($1, $2, $3, 1, $4, $5, 'u', 'd', $6, $7, 'b', '', 1)`,
    conversationId,
    number,
    session,
    randomBytes(32),
    previous,
    written,
    expected,
  ] as const;
const membership = (
  conversationId: string,
  user: string,
  from: bigint,
  to: bigint | null,
  version: bigint,
  until: bigint | null,
) =>
  [
    `INSERT INTO memberships (conversation_id, user_id, role, from_epoch, to_epoch, from_roster_version, to_roster_version)
     VALUES ($1, $2, 1, $3, $4, $5, $6)`,
    conversationId,
    user,
    from,
    to,
    version,
    until,
  ] as const;

describe('the database, by straight SQL, refuses', () => {
  it('a conversation without the session of its epoch', async () => {
    const id = randomUUID();
    const failure = await failureOf(newConversation(id), membership(id, 'u', 1n, null, 1n, null));
    expect(isForeignKeyViolation(failure, 'conversations_epoch_has_session')).toBe(true);
  });

  it('an epoch whose session was not decided, or was given up', async () => {
    const id = randomUUID();
    const undecided = await failureOf(newConversation(id), epoch(id, 1n, 's1', null));
    expect(isForeignKeyViolation(undecided, 'epochs_committed')).toBe(true);
    const aborted = await failureOf(newConversation(id), decided(id, 's1', 'ABORTED'), epoch(id, 1n, 's1', null));
    expect(isForeignKeyViolation(aborted, 'epochs_committed')).toBe(true);
  });

  it('an epoch whose session lacks envelopes', async () => {
    const id = randomUUID();
    const failure = await failureOf(
      newConversation(id),
      decided(id, 's1', 'COMMITTED'),
      epoch(id, 1n, 's1', null, 2, 3),
    );
    expect(isCheckViolation(failure, 'epochs_whole_session')).toBe(true);
  });

  it('a second decision on a session, and another outcome for the first', async () => {
    const failure = await failureOf(decided(group, sessionId, 'ABORTED'));
    expect(isUniqueViolation(failure, 'session_decisions_pkey')).toBe(true);
    const changed = await failureOf(["UPDATE session_decisions SET outcome = 'ABORTED'"]);
    expect(isCheckViolation(changed, 'session_decisions_never_change')).toBe(true);
  });

  it('a second session for an epoch, a session for two epochs, and an epoch out of its chain', async () => {
    const hash = randomBytes(32);
    const taken = await failureOf(decided(group, 'other', 'COMMITTED'), epoch(group, 2n, 'other', hash));
    expect(isUniqueViolation(taken, 'epochs_pkey') || isForeignKeyViolation(taken, 'epochs_chain')).toBe(true);
    const twice = await failureOf(epoch(group, 3n, sessionId, hash));
    expect(isUniqueViolation(twice, 'epochs_one_per_session')).toBe(true);
    const unchained = await failureOf(decided(group, 'next', 'COMMITTED'), epoch(group, 3n, 'next', hash));
    expect(isForeignKeyViolation(unchained, 'epochs_chain')).toBe(true);
    const gap = await failureOf(decided(group, 'next', 'COMMITTED'), epoch(group, 9n, 'next', hash));
    expect(isForeignKeyViolation(gap, 'epochs_chain')).toBe(true);
    const first = await failureOf(decided(group, 'next', 'COMMITTED'), epoch(group, 3n, 'next', null));
    expect(isCheckViolation(first, 'epochs_first_has_no_predecessor')).toBe(true);
  });

  it.each([
    ['going back to an earlier epoch', `epoch = 1`],
    ['an epoch without its session', `epoch = epoch + 1`],
    ['skipping a roster version', `roster_version = roster_version + 2`],
    ['a gap in the sequence', `last_sequence = last_sequence + 2`],
    ['another history policy under the same roster version', `history_policy = 2`],
    ['other permissions under the same roster version', `may_add = 2`],
    ['another kind', `kind = 1, direct_low = 'a', direct_high = 'b'`],
  ])('a conversation %s', async (_name, change) => {
    const failure = await failureOf([`UPDATE conversations SET ${change} WHERE conversation_id = $1`, group]);
    expect(isCheckViolation(failure, 'conversations_move_forward')).toBe(true);
  });

  it('a removal that does not refuse messages, and a refusal without a removal', async () => {
    const due = await failureOf(['UPDATE conversations SET rotation_due = 2 WHERE conversation_id = $1', group]);
    expect(isCheckViolation(due, 'conversations_removal_refuses_messages')).toBe(true);
    const revoked = await failureOf(['UPDATE conversations SET rotation_due = 4 WHERE conversation_id = $1', group]);
    expect(isCheckViolation(revoked, 'conversations_removal_refuses_messages')).toBe(true);
    const refused = await failureOf([
      'UPDATE conversations SET min_send_epoch = epoch + 1 WHERE conversation_id = $1',
      group,
    ]);
    expect(isCheckViolation(refused, 'conversations_removal_refuses_messages')).toBe(true);
  });

  it('a second direct conversation of a pair, a direct one without its pair, and a group with one', async () => {
    const id = randomUUID();
    const second = await failureOf([
      `INSERT INTO conversations (conversation_id, kind, direct_low, direct_high, history_policy, epoch, session_id,
         roster_version, writer_build, created_trace_id, last_write_trace_id)
       SELECT $1, 1, direct_low, direct_high, 1, 1, 's1', 1, 'b', '', '' FROM conversations WHERE conversation_id = $2`,
      id,
      direct,
    ]);
    expect(isUniqueViolation(second, 'conversations_one_per_pair')).toBe(true);
    const paired = await failureOf(newConversation(id, `direct_low='a'`));
    expect(isCheckViolation(paired, 'conversations_direct_pair')).toBe(true);
  });

  it('a third member of a direct conversation, and the leaving of one', async () => {
    const bump = ['UPDATE conversations SET roster_version = 2 WHERE conversation_id = $1', direct] as const;
    const third = await failureOf(bump, membership(direct, 'eve', 1n, null, 2n, null));
    expect(isCheckViolation(third, 'roster_direct_is_fixed')).toBe(true);
    const left = await failureOf(bump, [
      'UPDATE memberships SET to_epoch = 1, to_roster_version = 2 WHERE conversation_id = $1 AND user_id = $2',
      direct,
      userId,
    ]);
    expect(isCheckViolation(left, 'roster_direct_is_fixed')).toBe(true);
  });

  it('a conversation without members, and a roster without an admin', async () => {
    const id = randomUUID();
    const empty = await failureOf(newConversation(id), decided(id, 's1', 'COMMITTED'), epoch(id, 1n, 's1', null));
    expect(isCheckViolation(empty, 'roster_not_empty_at_creation')).toBe(true);
    const headless = await failureOf([`UPDATE memberships SET role = 2 WHERE conversation_id = $1`, group]);
    expect(isCheckViolation(headless, 'roster_has_an_admin')).toBe(true);
  });

  it('memberships that overlap, a second open one, a span that ends before it starts, and one without its roster version', async () => {
    const bump = ['UPDATE conversations SET roster_version = 2 WHERE conversation_id = $1', group] as const;
    const second = await failureOf(bump, membership(group, userId, 3n, null, 2n, null));
    expect(isUniqueViolation(second, 'memberships_one_open') || (second as { code?: string }).code === '23P01').toBe(
      true,
    );
    const overlapping = await failureOf(bump, membership(group, userId, 2n, 2n, 1n, 2n));
    expect((overlapping as { code?: string }).code === '23P01' || isUniqueViolation(overlapping)).toBe(true);
    const backwards = await failureOf(bump, membership(group, 'eve', 3n, 1n, 1n, 2n));
    expect(isCheckViolation(backwards, 'memberships_span')).toBe(true);
    const unversioned = await failureOf(membership(group, 'eve', 3n, null, 7n, null));
    expect(isCheckViolation(unversioned, 'memberships_change_the_roster_version')).toBe(true);
    const halfEnded = await failureOf(bump, membership(group, 'eve', 1n, 1n, 1n, null));
    expect(isCheckViolation(halfEnded)).toBe(true);
  });

  it('a message under a session that is not committed, a counter used twice, and a change of a message', async () => {
    const insert = (session: string, counter: bigint) =>
      [
        `INSERT INTO messages (conversation_id, sequence, epoch, session_id, sender_user_id, sender_device_id, sender_counter,
           ciphertext, signature, writer_build)
         SELECT $1, 99, e.epoch, $2, m.sender_user_id, m.sender_device_id, $3, m.ciphertext, m.signature, 'b'
         FROM messages m JOIN epochs e ON e.conversation_id = m.conversation_id AND e.epoch = 1 WHERE m.conversation_id = $1`,
        group,
        session,
        counter,
      ] as const;
    const uncommitted = await failureOf(insert('session_unknown', 1n));
    expect(isForeignKeyViolation(uncommitted, 'messages_under_a_session')).toBe(true);
    const [first] = await harness.query<{ session_id: string }>(
      'SELECT session_id FROM epochs WHERE conversation_id = $1::uuid AND epoch = 1',
      group,
    );
    const twice = await failureOf(insert(first?.session_id ?? '', 0n));
    expect(isUniqueViolation(twice, 'messages_counter_used_once')).toBe(true);
    const changed = await failureOf([`UPDATE messages SET sender_counter = 5 WHERE conversation_id = $1`, group]);
    expect(isCheckViolation(changed, 'messages_never_change')).toBe(true);
  });

  it('rows that do not name the build that wrote them', async () => {
    const failure = await failureOf(['UPDATE conversations SET writer_build = NULL WHERE conversation_id = $1', group]);
    expect(isNotNullViolation(failure, 'writer_build')).toBe(true);
  });
});

describe('of the log of a roster, the database refuses, by straight SQL', () => {
  const bump = () =>
    ['UPDATE conversations SET roster_version = roster_version + 1 WHERE conversation_id = $1', group] as const;
  /** A copy of the first entry with other parts. */
  const entry = (parts: string) =>
    [
      `INSERT INTO roster_log (conversation_id, roster_version, previous_version, previous_hash, change, signature, author_user_id,
         author_device_id, author_identity_key, author_signing_key, certificate_root_key, certified_at, certificate_signature,
         writer_build, trace_id)
       SELECT conversation_id, ${parts}, change, signature, author_user_id, author_device_id, author_identity_key, author_signing_key,
         certificate_root_key, certified_at, certificate_signature, 'b', ''
       FROM roster_log WHERE conversation_id = $1 AND roster_version = 1`,
      group,
    ] as const;

  it('a roster that changes without an entry', async () => {
    expect(isForeignKeyViolation(await failureOf(bump()), 'conversations_roster_has_its_entry')).toBe(true);
  });

  it('a new conversation without an entry, or with the head of nothing', async () => {
    const id = randomUUID();
    const session = [decided(id, 's1', 'COMMITTED'), epoch(id, 1n, 's1', null)] as const;
    const member = membership(id, 'u', 1n, null, 1n, null);
    const headless = await failureOf(newConversation(id), ...session, member);
    expect(isCheckViolation(headless, 'conversations_roster_has_its_entry')).toBe(true);
    const invented = await failureOf(newConversation(id, "roster_head=sha256('')"), ...session, member);
    expect(isForeignKeyViolation(invented, 'conversations_roster_has_its_entry')).toBe(true);
  });

  it('an entry that is changed or taken away', async () => {
    for (const change of [
      "UPDATE roster_log SET change = '\\x00' WHERE conversation_id = $1",
      'UPDATE roster_log SET recorded_at = now() WHERE conversation_id = $1',
      'DELETE FROM roster_log WHERE conversation_id = $1',
    ])
      expect(isCheckViolation(await failureOf([change, group]), 'roster_log_never_change')).toBe(true);
  });

  it('an entry that skips a version, or comes after the next one was made', async () => {
    const skipping = await failureOf(bump(), entry('3, 2, entry_hash'));
    expect(
      isForeignKeyViolation(skipping, 'roster_log_chained') || isCheckViolation(skipping, 'roster_log_without_gaps'),
    ).toBe(true);
    const early = await failureOf(entry('2, 1, entry_hash'));
    expect(isCheckViolation(early, 'roster_log_without_gaps')).toBe(true);
  });

  it('a fork: a second entry of a version, or one that names another hash than that of the entry before', async () => {
    const second = await failureOf(entry("1, NULL, ''"));
    expect(isUniqueViolation(second)).toBe(true);
    const forked = await failureOf(bump(), entry("2, 1, sha256('')"));
    expect(isForeignKeyViolation(forked, 'roster_log_chained')).toBe(true);
    const anew = await failureOf(bump(), entry("2, NULL, ''"));
    expect(isCheckViolation(anew, 'roster_log_begins')).toBe(true);
  });

  it('an entry of its own hash, of two kinds, and a change that is not signed', async () => {
    const hashed = await failureOf(bump(), [
      `INSERT INTO roster_log (conversation_id, roster_version, previous_version, previous_hash, erased_user_id, entry_hash, writer_build, trace_id)
       VALUES ($1, 2, 1, sha256(''), 'x', sha256(''), 'b', '')`,
      group,
    ]);
    expect((hashed as { code?: string }).code).toBe('428C9');
    const both = await failureOf(bump(), [
      `INSERT INTO roster_log (conversation_id, roster_version, previous_version, previous_hash, change, base, writer_build, trace_id)
       VALUES ($1, 2, 1, sha256(''), 'x', 'y', 'b', '')`,
      group,
    ]);
    expect(isCheckViolation(both)).toBe(true);
    const unsigned = await failureOf(bump(), [
      `INSERT INTO roster_log (conversation_id, roster_version, previous_version, previous_hash, change, writer_build, trace_id)
       SELECT $1, 2, 1, entry_hash, change, 'b', '' FROM roster_log WHERE conversation_id = $1 AND roster_version = 1`,
      group,
    ]);
    expect(isCheckViolation(unsigned, 'roster_log_changes_are_signed')).toBe(true);
  });

  it('an unsigned removal of anybody but an erased user, and a base that is not the first entry', async () => {
    const erasure = await failureOf(bump(), [
      `INSERT INTO roster_log (conversation_id, roster_version, previous_version, previous_hash, erased_user_id, writer_build, trace_id)
       SELECT $1, 2, 1, entry_hash, 'somebody', 'b', '' FROM roster_log WHERE conversation_id = $1 AND roster_version = 1`,
      group,
    ]);
    expect(isCheckViolation(erasure, 'roster_log_erases_erased_users')).toBe(true);
    const base = (previous: string) =>
      failureOf(bump(), [
        `INSERT INTO roster_log (conversation_id, roster_version, previous_version, previous_hash, base, writer_build, trace_id)
         SELECT $1, 2, ${previous}, 'x', 'b', '' FROM roster_log WHERE conversation_id = $1 AND roster_version = 1`,
        group,
      ]);
    expect(isCheckViolation(await base('1, entry_hash'), 'roster_log_begins')).toBe(true);
    expect(isCheckViolation(await base("NULL, ''"), 'roster_log_without_gaps')).toBe(true);
  });
});
