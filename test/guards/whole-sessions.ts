import type { Guard } from './guard.ts';

const conversation = 'services/conversation/prisma/migrations/20261122000000_conversations/migration.sql';
const session = 'services/session/prisma/migrations/20261101000000_sessions/migration.sql';
const conversationSql = 'services/conversation/test/constraints.test.ts';
const creation = 'services/conversation/test/creation.test.ts';
const storing = 'services/session/test/storing.test.ts';
const sessionSql = 'services/session/test/straight-sql.test.ts';

/** I1, whole conversation; I2, no session without its ephemeral key. */
export const wholeSessions: readonly Guard[] = [
  {
    name: 'conversation-has-its-session',
    invariant: 'I1',
    what: 'A conversation row cannot be committed without the session of its epoch (foreign key, deferred to the commit).',
    switchOff: [
      {
        file: conversation,
        find: `conversations_epoch_has_session FOREIGN KEY (conversation_id, epoch, session_id)
    REFERENCES epochs (conversation_id, epoch, session_id) DEFERRABLE INITIALLY DEFERRED`,
        replace: 'conversations_epoch_has_session CHECK (true)',
      },
    ],
    test: { file: conversationSql, name: 'a conversation without the session of its epoch' },
  },
  {
    name: 'epoch-needs-committed-session',
    invariant: 'I1',
    what: 'An epoch takes only a session that was decided to be committed; one that was given up never becomes visible (foreign key).',
    switchOff: [
      {
        file: conversation,
        find: `epochs_committed FOREIGN KEY (conversation_id, session_id, outcome)
    REFERENCES session_decisions (conversation_id, session_id, outcome)`,
        replace: 'epochs_committed CHECK (true)',
      },
    ],
    test: { file: conversationSql, name: 'an epoch whose session was not decided, or was given up' },
  },
  {
    name: 'epoch-counts-envelopes',
    invariant: 'I1',
    what: 'An epoch takes only a session of which as many envelopes were written as were expected (check).',
    switchOff: [
      { file: conversation, find: 'CHECK (envelopes_written = envelopes_expected)', replace: 'CHECK (true)' },
    ],
    test: { file: conversationSql, name: 'an epoch whose session lacks envelopes' },
  },
  {
    name: 'stored-count-is-compared',
    invariant: 'I1',
    what: 'What session says it wrote is compared with what was sent before anything is committed (check in code).',
    switchOff: [
      {
        file: 'services/conversation/src/epochs/store-candidate.ts',
        find: 'if (stored.envelopesWritten !== expected || stored.envelopesExpected !== expected)',
        replace: 'if (expected < 0)',
      },
    ],
    test: {
      file: 'services/conversation/test/short-stores.test.ts',
      name: 'a session that was stored with fewer envelopes than were sent is never committed',
    },
  },
  {
    name: 'session-whole-at-commit',
    invariant: 'I1',
    what: 'A session row cannot be committed without exactly the envelopes and withholdings it was stored with (constraint trigger).',
    switchOff: [
      {
        file: session,
        find: `CREATE CONSTRAINT TRIGGER session_is_whole AFTER INSERT ON sessions
  DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION check_session_is_whole();`,
        replace: '',
      },
    ],
    test: { file: storing, name: 'cannot store a session without its envelopes' },
  },
  {
    name: 'session-keeps-envelopes',
    invariant: 'I1',
    what: 'An envelope of the first attempt cannot be taken away from its session (constraint trigger).',
    switchOff: [
      {
        file: session,
        find: `CREATE CONSTRAINT TRIGGER session_keeps_its_envelopes AFTER DELETE ON envelopes
  DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (OLD.attempt = 0) EXECUTE FUNCTION check_session_is_whole();`,
        replace: '',
      },
    ],
    test: { file: storing, name: 'cannot take an envelope away from a session, nor change one, nor add one' },
  },
  {
    name: 'session-takes-no-extra-envelopes',
    invariant: 'I1',
    what: 'An envelope of the first attempt cannot be slipped into a stored session (trigger).',
    switchOff: [
      {
        file: session,
        find: `CREATE TRIGGER session_takes_no_extra_envelopes AFTER INSERT ON envelopes
  REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION check_no_extra_envelopes();`,
        replace: '',
      },
    ],
    test: { file: storing, name: 'cannot take an envelope away from a session, nor change one, nor add one' },
  },
  {
    name: 'store-covers-roster',
    invariant: 'I1',
    what: 'StoreSession wants an envelope or a withholding for each device of the roster, and for no other (check in code).',
    switchOff: [
      {
        file: 'services/session/src/domain/whole-session.ts',
        find: 'return missing.length + unexpected.length > 0 ?',
        replace: 'return missing.length + unexpected.length < 0 ?',
      },
    ],
    test: { file: storing, name: 'must cover every device of the roster, and no other' },
  },
  {
    name: 'creation-covers-devices',
    invariant: 'I1',
    what: 'CreateConversation and RotateSession compare the session with the devices that identity-keys has now (check in code).',
    switchOff: [
      {
        file: 'services/conversation/src/epochs/check-session.ts',
        find: 'if (incomplete) throw sessionIncomplete(incomplete);',
        replace: '',
      },
    ],
    test: { file: creation, name: 'is refused with the devices that are missing and those that are unexpected' },
  },
  {
    name: 'candidate-is-recorded-first',
    invariant: 'I1',
    what: 'A session is recorded as a candidate before it is stored, so that one that never wins is found and cleaned up.',
    switchOff: [
      {
        file: 'services/conversation/src/epochs/store-candidate.ts',
        find: 'await recordCandidate(tx, session, request, by);',
        replace: '',
      },
    ],
    test: { file: creation, name: 'is cleaned up by the reconciler, and may start again with a new session' },
  },
  {
    name: 'abort-leaves-tombstone',
    invariant: 'I1',
    what: 'The reconciler takes the key that a late commit would insert before it deletes the session: no conversation without its session.',
    switchOff: [
      {
        file: 'services/conversation/src/jobs/reconcile-candidates.ts',
        find: "const { outcome } = await decideSession(tx, candidate, 'ABORTED', by);",
        replace: "const outcome = by ? 'ABORTED' : '';",
      },
    ],
    test: {
      file: creation,
      name: 'collides with the reconciler in one place: a late commit is told that it was given up',
    },
  },
  {
    name: 'request-id-content',
    invariant: 'I1',
    what: 'A request id that comes again with other content is refused instead of being answered for the first (digest compare).',
    switchOff: [
      {
        file: 'packages/storage/src/request-ids.ts',
        find: 'first.method !== method || !digest.equals(first.content_digest)',
        replace: 'first.method !== method',
      },
    ],
    test: {
      file: 'packages/storage/test/request-ids.test.ts',
      name: 'the same id with other content, or for another method, is refused',
    },
  },
  {
    name: 'request-id-once',
    invariant: 'I1',
    what: 'Work under one request id is done once, however many ask at the same time (primary key that the second waits on).',
    switchOff: [
      {
        file: 'packages/storage/src/request-ids.ts',
        find: '  PRIMARY KEY (caller, request_id)\n);\nCREATE INDEX',
        replace: '  CHECK (true)\n);\nCREATE INDEX',
      },
      {
        file: 'packages/storage/src/request-ids.ts',
        find: 'ON CONFLICT (caller, request_id) DO NOTHING RETURNING true AS reserved',
        replace: 'RETURNING true AS reserved',
      },
    ],
    test: {
      file: 'packages/storage/test/request-ids.test.ts',
      name: 'fifteen concurrent requests with one id have one effect and one answer',
    },
  },
  {
    name: 'session-needs-ephemeral-key',
    invariant: 'I2',
    what: 'A NATIVE session row has its ephemeral key, of 32 bytes, from the statement that inserts it on (check).',
    switchOff: [
      {
        file: session,
        find: 'AND initiator_ephemeral_key IS NOT NULL AND octet_length(initiator_ephemeral_key) = 32\n      AND key_commitment IS NOT NULL',
        replace: 'AND key_commitment IS NOT NULL',
      },
    ],
    test: { file: sessionSql, name: 'refuses an otherwise whole session without its ephemeral key' },
  },
  {
    name: 'imported-session-is-marked',
    invariant: 'I2',
    what: 'A row of an older system says so, and carries no malformed ephemeral key (check of its own).',
    switchOff: [
      {
        file: session,
        find: 'AND (initiator_ephemeral_key IS NULL OR octet_length(initiator_ephemeral_key) = 32)\n',
        replace: '\n',
      },
    ],
    test: {
      file: sessionSql,
      name: 'refuses an imported session with a malformed ephemeral key, or without its origin',
    },
  },
  {
    name: 'session-is-immutable',
    invariant: 'I2',
    what: 'No column of a stored session can be changed: its ephemeral key cannot be taken away later (trigger).',
    switchOff: [
      {
        file: session,
        find: 'CREATE TRIGGER sessions_immutable BEFORE UPDATE ON sessions FOR EACH ROW EXECUTE FUNCTION refuse_session_change();',
        replace: '',
      },
    ],
    test: { file: sessionSql, name: 'refuses to exchange the ephemeral key of a stored session, or its content' },
  },
  {
    name: 'header-needs-ephemeral-key',
    invariant: 'I2',
    what: 'A header without a valid ephemeral key is none: every reader and every server refuses it as that (check in code; the checks of sealer and row stand behind it).',
    switchOff: [
      {
        file: 'packages/crypto/src/header.ts',
        find: "    ['initiator_ephemeral_key', checkX25519(header.initiatorEphemeralKey)],\n",
        replace: '',
      },
    ],
    test: {
      file: 'services/session/test/ephemeral-key.test.ts',
      name: 'a session whose header lacks the ephemeral key is refused with the field',
    },
  },
  {
    name: 'envelopes-use-the-ephemeral-key',
    invariant: 'I2',
    what: "Envelopes of the first attempt are by the header's initiator with the header's ephemeral key (check in code; their signatures, behind it, are off too).",
    switchOff: [
      { file: 'services/session/src/domain/whole-session.ts', find: 'checkSealer(envelope, parsed);', replace: '' },
      {
        file: 'services/session/src/rpc/store-session.ts',
        find: 'if (broken) throw signatureInvalid(broken.field);',
        replace: '',
      },
    ],
    test: { file: storing, name: 'takes envelopes of its initiator alone, sealed with its ephemeral key' },
  },
  {
    name: 'one-write-path',
    invariant: 'I2',
    what: 'Sessions are written by StoreSession alone, and StoreSession answers to conversation alone (caller check).',
    switchOff: [
      {
        file: 'services/session/src/rpc/store-session.ts',
        find: "allow: ['service:conversation'],",
        replace: "allow: ['service:conversation', 'device'],",
      },
    ],
    test: { file: storing, name: 'is stored and discarded by conversation alone' },
  },
  {
    name: 'session-keeps-content',
    invariant: 'I2',
    what: 'A session id that comes again with other content is refused (digest compare).',
    switchOff: [
      {
        file: 'services/session/src/rpc/store-session.ts',
        find: 'if (stored.contentDigest === null || !contentDigest.equals(stored.contentDigest)) throw sessionConflict(sessionId);',
        replace: 'if (contentDigest.length === 0) throw sessionConflict(sessionId);',
      },
    ],
    test: { file: storing, name: 'keeps its content: another one under its id is refused' },
  },
];
