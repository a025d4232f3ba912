import type { Guard } from './guard.ts';

const session = 'services/session/prisma/migrations/20261123040000_erasures/migration.sql';
const conversation = 'services/conversation/prisma/migrations/20261123040000_erasures/migration.sql';
const identityKeys = 'services/identity-keys/prisma/migrations/20261123040000_erasures/migration.sql';
const sessionTest = 'services/session/test/erasure.test.ts';
const conversationTest = 'services/conversation/test/erasure.test.ts';
const identityKeysTest = 'services/identity-keys/test/erasure.test.ts';

/** What the databases allow for erased users they allow for nobody else; and an erased user does not come back. */
export const erasure: readonly Guard[] = [
  {
    name: 'erased-envelopes-alone-go',
    invariant: 'I1',
    what: 'Of a stored session only envelopes of erased users may go: those alone are counted as erased (trigger).',
    switchOff: [
      {
        file: session,
        find: 'WHERE t.attempt = 0 AND EXISTS (SELECT FROM erasures e WHERE e.user_id = t.user_id)',
        replace: 'WHERE t.attempt = 0',
      },
    ],
    test: { file: sessionTest, name: 'lets the envelopes of an erased user go, and those of nobody else' },
  },
  {
    name: 'erased-envelope-has-no-successor',
    invariant: 'I1',
    what: 'No other envelope takes the place of an erased one: it still counts (trigger).',
    switchOff: [
      {
        file: session,
        find: `      + coalesce((SELECT p.envelopes FROM erased_parts p
      WHERE p.conversation_id = s.conversation_id AND p.session_id = s.session_id), 0)`,
        replace: '',
      },
    ],
    test: { file: sessionTest, name: 'takes no other envelope in the place of an erased one' },
  },
  {
    name: 'erased-parts-are-counted',
    invariant: 'I1',
    what: 'How much of a session was erased is counted by the database where it is deleted, and written by nobody (trigger).',
    switchOff: [
      {
        file: session,
        find: `CREATE TRIGGER erased_parts_are_counted BEFORE INSERT OR UPDATE OR DELETE ON erased_parts
  FOR EACH ROW WHEN (pg_trigger_depth() = 0) EXECUTE FUNCTION refuse_written_count();`,
        replace: '',
      },
    ],
    test: { file: sessionTest, name: 'counts erased parts itself: nobody writes the counts' },
  },
  {
    name: 'erased-memberships-alone-go',
    invariant: 'I5',
    what: 'A membership that ended goes only with an erased user: it says who is entitled to which epochs (trigger).',
    switchOff: [
      {
        file: conversation,
        find: 'OLD.to_epoch IS NULL OR NOT EXISTS (SELECT FROM erasures WHERE user_id = OLD.user_id)',
        replace: 'OLD.to_epoch IS NULL',
      },
    ],
    test: { file: conversationTest, name: 'to forget a membership of anybody else, or one that has not ended' },
  },
  {
    name: 'erased-member-closes-for-good',
    invariant: 'I5',
    what: 'A direct conversation is closed only when a member is erased, takes nothing more, and is not opened again (trigger).',
    switchOff: [
      {
        file: conversation,
        find: 'CREATE TRIGGER conversations_closing BEFORE UPDATE ON conversations FOR EACH ROW EXECUTE FUNCTION check_closing();',
        replace: '',
      },
    ],
    test: {
      file: conversationTest,
      name: 'to close a conversation whose members are there, to open a closed one, and to write on in it',
    },
  },
  {
    name: 'erased-messages-alone-change',
    invariant: 'I9',
    what: 'A stored message never changes, but is blanked as a whole when its sender is erased (trigger).',
    switchOff: [
      {
        file: conversation,
        find: '\n     AND EXISTS (SELECT FROM erasures WHERE user_id = OLD.sender_user_id) THEN',
        replace: ' THEN',
      },
    ],
    test: { file: conversationTest, name: 'to blank a message of anybody else, and to change one otherwise' },
  },
  {
    name: 'erased-users-get-nothing',
    invariant: 'I9',
    what: 'Nothing is written for an erased user any more (trigger).',
    switchOff: [
      {
        file: session,
        find: `CREATE TRIGGER key_requests_not_of_erased_users AFTER INSERT ON key_requests
  REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION refuse_rows_of_erased_users();`,
        replace: '',
      },
    ],
    test: { file: sessionTest, name: 'writes nothing for an erased user any more, and skips an offer' },
  },
  {
    name: 'erased-users-answer-nothing',
    invariant: 'I9',
    what: 'An erased user answers no key request, whatever was found before the erasure (the statement that writes the envelope, and a trigger).',
    switchOff: [
      {
        file: 'services/session/prisma/migrations/20261123070000_erased_holders/migration.sql',
        find: `
     OR EXISTS (SELECT FROM added a JOIN erasures e ON e.user_id = a.sealer_user_id WHERE a.attempt > 0) THEN`,
        replace: ' THEN',
      },
      {
        file: 'services/session/src/store/envelopes.ts',
        find: `
         OR EXISTS (SELECT FROM erasures WHERE user_id = $1) AS holder_revoked`,
        replace: ' AS holder_revoked',
      },
    ],
    test: { file: 'services/session/test/fulfilment.test.ts', name: 'is not accepted: its holder is erased' },
  },
  {
    name: 'revoked-devices-answer-nothing',
    invariant: 'I9',
    what: 'A device that is noted as revoked answers no key request, whatever was found before (in the statement that writes the envelope).',
    switchOff: [
      {
        file: 'services/session/src/store/envelopes.ts',
        find: `EXISTS (SELECT FROM revoked_devices WHERE user_id = $1 AND device_id = $2)
         OR EXISTS (SELECT FROM erasures WHERE user_id = $1) AS holder_revoked`,
        replace: 'false AS holder_revoked',
      },
    ],
    test: { file: 'services/session/test/fulfilment.test.ts', name: 'is not accepted: its holder is revoked' },
  },
  {
    name: 'erasure-waits-for-writers',
    invariant: 'I9',
    what: 'An erasure begins only when whoever found its user not erased has committed (advisory lock).',
    switchOff: [
      {
        file: session,
        find: `BEGIN
  PERFORM pg_advisory_xact_lock_shared(hashtext('erasures'));
  IF EXISTS (SELECT FROM added`,
        replace: `BEGIN
  IF EXISTS (SELECT FROM added`,
      },
    ],
    test: { file: sessionTest, name: 'notes an erasure only when whoever looked before has committed' },
  },
  {
    name: 'erased-users-stay-away',
    invariant: 'I9',
    what: 'An erased user cannot be named again as long as the erasure is remembered, whatever token there is (trigger).',
    switchOff: [
      {
        file: identityKeys,
        find: 'CREATE TRIGGER users_not_erased BEFORE INSERT ON users FOR EACH ROW EXECUTE FUNCTION refuse_erased_users();',
        replace: '',
      },
    ],
    test: { file: identityKeysTest, name: 'to name an erased user, or a second erasure of one' },
  },
  {
    name: 'erasure-ends-with-all-reports',
    invariant: 'I9',
    what: 'An erasure is complete only when every service has reported and the user is gone (trigger).',
    switchOff: [
      {
        file: identityKeys,
        find: 'IF OLD.completed_at IS NULL AND NEW.completed_at IS NOT NULL\n',
        replace: 'IF false AND NEW.completed_at IS NOT NULL\n',
      },
    ],
    test: {
      file: identityKeysTest,
      name: 'to end an erasure without every report, while the user is there, or to forget whom it is of before',
    },
  },
  {
    name: 'erasure-asks-again',
    invariant: 'I9',
    what: 'A service that has not reported is asked again until it has, over all replicas together.',
    switchOff: [
      {
        file: 'services/identity-keys/src/jobs/complete-erasures.ts',
        find: '      await askToErase(tx, erasure);\n',
        replace: '',
      },
    ],
    test: {
      file: identityKeysTest,
      name: 'keeps the first report of each service, and asks those again that have not reported',
    },
  },
];
