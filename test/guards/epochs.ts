import type { Guard } from './guard.ts';

const migration = 'services/conversation/prisma/migrations/20261122000000_conversations/migration.sql';
const revocationsMigration = 'services/conversation/prisma/migrations/20261123010000_device_revocations/migration.sql';
const sql = 'services/conversation/test/constraints.test.ts';
const epochsAndRosters = 'services/conversation/test/epochs-and-rosters.test.ts';
const conversations = 'services/conversation/src/store/conversations.ts';

const chain = {
  file: migration,
  find: `epochs_chain FOREIGN KEY (conversation_id, previous_epoch, previous_header_hash)
    REFERENCES epochs (conversation_id, epoch, header_hash)`,
  replace: 'epochs_chain CHECK (true)',
};

/** I5, one epoch, one session. */
export const epochs: readonly Guard[] = [
  {
    name: 'rotation-compares-epoch',
    invariant: 'I5',
    what: 'Of many rotations of one epoch one wins and the others are told which (compare-and-set; behind it the primary key keeps a second session out, as a fault).',
    switchOff: [
      {
        file: conversations,
        find: 'WHERE conversation_id = $1 AND epoch = $2 AND roster_version = $3',
        replace: 'WHERE conversation_id = $1 AND $2::bigint > 0 AND roster_version = $3',
      },
    ],
    test: { file: epochsAndRosters, name: 'has exactly one winner, and the losers are told which' },
  },
  {
    name: 'rotation-compares-roster',
    invariant: 'I5',
    what: 'A rotation commits only for the roster it was sealed to: a removed member is in no new session (compare-and-set).',
    switchOff: [
      {
        file: conversations,
        find: 'WHERE conversation_id = $1 AND epoch = $2 AND roster_version = $3',
        replace: 'WHERE conversation_id = $1 AND epoch = $2 AND $3::bigint > 0',
      },
    ],
    test: { file: epochsAndRosters, name: 'loses against a removal that commits first' },
  },
  {
    name: 'roster-compares-version',
    invariant: 'I5',
    what: 'A roster changes only from the version that the caller saw (check under the lock of the conversation).',
    switchOff: [
      {
        file: 'services/conversation/src/rpc/add-members.ts',
        find: 'if (current.rosterVersion !== request.expectedRosterVersion) throw rosterConflict(current);',
        replace: '',
      },
    ],
    test: { file: epochsAndRosters, name: 'changes by compare-and-set on its version' },
  },
  {
    name: 'one-session-per-epoch',
    invariant: 'I5',
    what: 'An epoch has one session (primary key; the chain of headers, which also keeps a second one out, is off too).',
    switchOff: [
      {
        file: migration,
        find: '  PRIMARY KEY (conversation_id, epoch),\n  CONSTRAINT epochs_one_per_session',
        replace: '  CONSTRAINT epochs_one_per_session',
      },
      chain,
    ],
    test: {
      file: sql,
      name: 'a second session for an epoch, a session for two epochs, and an epoch out of its chain',
    },
  },
  {
    name: 'one-epoch-per-session',
    invariant: 'I5',
    what: 'A session is of one epoch (unique constraint).',
    switchOff: [
      {
        file: migration,
        find: 'CONSTRAINT epochs_one_per_session UNIQUE (conversation_id, session_id)',
        replace: 'CONSTRAINT epochs_one_per_session CHECK (true)',
      },
    ],
    test: {
      file: sql,
      name: 'a second session for an epoch, a session for two epochs, and an epoch out of its chain',
    },
  },
  {
    name: 'epochs-are-a-chain',
    invariant: 'I5',
    what: 'Each epoch stands on the header of the one before, without gaps (foreign key).',
    switchOff: [chain],
    test: {
      file: sql,
      name: 'a second session for an epoch, a session for two epochs, and an epoch out of its chain',
    },
  },
  {
    name: 'conversation-moves-forward',
    invariant: 'I5',
    what: 'Epoch, roster version and sequence of a conversation go forward one step at a time, by whatever statement (trigger).',
    switchOff: [
      {
        file: migration,
        find: 'CREATE TRIGGER conversations_step BEFORE UPDATE ON conversations FOR EACH ROW EXECUTE FUNCTION check_conversation_step();',
        replace: '',
      },
    ],
    test: { file: sql, name: 'a conversation skipping a roster version' },
  },
  {
    name: 'decision-stands',
    invariant: 'I5',
    what: 'What was decided about a session is never changed (trigger).',
    switchOff: [
      {
        file: migration,
        find: 'CREATE TRIGGER session_decisions_immutable BEFORE UPDATE ON session_decisions FOR EACH ROW EXECUTE FUNCTION refuse_change();',
        replace: '',
      },
    ],
    test: { file: sql, name: 'a second decision on a session, and another outcome for the first' },
  },
  {
    name: 'memberships-do-not-overlap',
    invariant: 'I5',
    what: 'A user is in a roster once at a time (unique index; the exclusion constraints behind it are off too).',
    switchOff: [
      {
        file: migration,
        find: 'CREATE UNIQUE INDEX memberships_one_open ON memberships',
        replace: 'CREATE INDEX memberships_one_open ON memberships',
      },
      { file: migration, find: "int8range(from_epoch, to_epoch, '[]') WITH &&", replace: 'from_roster_version WITH =' },
      {
        file: migration,
        find: 'int8range(from_roster_version, to_roster_version) WITH &&',
        replace: 'from_roster_version WITH =',
      },
    ],
    test: {
      file: sql,
      name: 'memberships that overlap, a second open one, a span that ends before it starts, and one without its roster version',
    },
  },
  {
    name: 'removal-closes-the-epoch',
    invariant: 'I5',
    what: 'After a removal, messages under the sessions that the removed member has are refused until the rotation (check in code).',
    switchOff: [
      {
        file: 'services/conversation/src/domain/sending.ts',
        find: "if (session.epoch < state.minSendEpoch) return 'rotation-required';",
        replace: '',
      },
    ],
    test: {
      file: 'services/conversation/test/domain.test.ts',
      name: 'is never accepted under a session that a removed member could read',
    },
  },
  {
    name: 'removal-raises-the-bound',
    invariant: 'I5',
    what: 'A removal, or a revocation, and the refusal of messages are one fact: neither can be written without the other (check).',
    switchOff: [
      {
        file: revocationsMigration,
        find: 'CHECK ((rotation_due IN (2, 4)) = (min_send_epoch = epoch + 1))',
        replace: 'CHECK (true)',
      },
    ],
    test: { file: sql, name: 'a removal that does not refuse messages, and a refusal without a removal' },
  },
];
