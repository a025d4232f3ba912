import type { Guard } from './guard.ts';

const migration = 'services/conversation/prisma/migrations/20261124030000_rotations_and_changes/migration.sql';
const rotations = 'services/conversation/test/rotations.test.ts';
const changes = 'services/conversation/test/changes.test.ts';
const rotationStore = 'services/conversation/src/store/rotations.ts';

/** I1, I5 and I9: rotations that are asked for, changes of a user, and sessions that come late. */
export const rotationsAndChanges: readonly Guard[] = [
  {
    name: 'discard-waits-for-store',
    invariant: 'I1',
    what: 'A session that is being stored while it is discarded goes too: both take its lock until they commit (trigger).',
    switchOff: [
      {
        file: 'services/session/prisma/migrations/20261124030000_discarded_sessions/migration.sql',
        find: "PERFORM pg_advisory_xact_lock_shared(hashtextextended(NEW.conversation_id || ' ' || NEW.session_id, 0));",
        replace: 'NULL;',
      },
    ],
    test: {
      file: 'services/session/test/storing.test.ts',
      name: 'is found by the discard that comes while it is being stored, and goes',
    },
  },
  {
    name: 'due-rotation-has-a-row',
    invariant: 'I5',
    what: 'A rotation that is due, whoever made it due, is one that a device is asked for (trigger).',
    switchOff: [
      {
        file: 'services/conversation/prisma/migrations/20261126000000_rotation_due_writers/migration.sql',
        find: 'IF NEW.rotation_due = 0 OR NEW.closed_at IS NOT NULL THEN',
        replace: 'IF true THEN',
      },
    ],
    test: { file: rotations, name: 'keeps a row for each rotation that is due, whoever made it due, until it is not' },
  },
  {
    name: 'rotation-asks-one-device',
    invariant: 'I5',
    what: 'One device is asked for a rotation at a time (unique index).',
    switchOff: [
      {
        file: migration,
        find: 'CREATE UNIQUE INDEX rotation_asks_one_at_a_time',
        replace: 'CREATE INDEX rotation_asks_one_at_a_time',
      },
    ],
    test: { file: rotations, name: 'refuses that two devices are asked at once' },
  },
  {
    name: 'rotation-look-is-claimed',
    invariant: 'I5',
    what: 'Of many replicas one looks at a rotation that is due, and what it decides is void when another one looked meanwhile (lease and version; both are off).',
    switchOff: [
      {
        file: rotationStore,
        find: "SET next_attempt_at = now() + $2 * interval '1 millisecond', version = version + 1",
        replace: "SET next_attempt_at = least(now(), now() + $2 * interval '1 millisecond'), version = version + 1",
      },
      {
        file: rotationStore,
        find: 'WHERE conversation_id = $1 AND version = $2 RETURNING true AS saved',
        replace: 'WHERE conversation_id = $1 AND $2::bigint > 0 RETURNING true AS saved',
      },
    ],
    test: { file: rotations, name: 'is asked of one device alone, however many replicas ask' },
  },
  {
    name: 'rotation-look-sees-the-roster',
    invariant: 'I9',
    what: 'What a look at a rotation decided that began before the roster moved is void: no device of who left is asked, nor kept waiting for (trigger).',
    switchOff: [
      {
        file: 'services/conversation/prisma/migrations/20261124090000_rotations_move_on/migration.sql',
        find: `(OLD.rotation_due, OLD.epoch, OLD.roster_version, OLD.closed_at)
        IS DISTINCT FROM (NEW.rotation_due, NEW.epoch, NEW.roster_version, NEW.closed_at)`,
        replace:
          '(OLD.rotation_due, OLD.epoch, OLD.closed_at) IS DISTINCT FROM (NEW.rotation_due, NEW.epoch, NEW.closed_at)',
      },
    ],
    test: { file: rotations, name: 'is asked of nobody by a look that began before the roster moved' },
  },
  {
    name: 'stored-message-is-not-judged-again',
    invariant: 'I5',
    what: 'A message that is in the log is told its place again, also when its session refuses messages by now: it is not sent once more under the next one.',
    switchOff: [
      {
        file: 'services/conversation/src/rpc/send-message.ts',
        find: 'if (used) {',
        replace: "if (used && judgeSending(current, own.spans, session) === 'accepted') {",
      },
    ],
    test: {
      file: 'services/conversation/test/epochs-and-rosters.test.ts',
      name: 'tells a message its place again whatever came after it: its request id forgotten, and a member removed or the session rotated',
    },
  },
  {
    name: 'removed-member-learns-no-more',
    invariant: 'I9',
    what: 'A removed member is told the end of the membership, and nothing of what comes after it (own row in the list of changes).',
    switchOff: [
      {
        file: 'services/conversation/src/store/changes.ts',
        find: 'FROM mine m JOIN conversations c USING (conversation_id) WHERE m.to_epoch IS NULL',
        replace: 'FROM mine m JOIN conversations c USING (conversation_id)',
      },
    ],
    test: { file: changes, name: 'tell a removed member once, as far as the membership went, and nothing of later' },
  },
];
