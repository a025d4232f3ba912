import type { Guard } from './guard.ts';

const migration = 'services/conversation/prisma/migrations/20261124040000_roster_logs/migration.sql';
const constraints = 'services/conversation/test/constraints.test.ts';
const signedRosters = 'services/conversation/test/signed-rosters.test.ts';

/** I9: rosters are logs that members sign. */
export const rosters: readonly Guard[] = [
  {
    name: 'roster-has-its-entry',
    invariant: 'I9',
    what: 'No roster changes without an entry in its log (foreign key to the newest entry, deferred to the commit).',
    switchOff: [
      {
        file: migration,
        find: `ADD CONSTRAINT conversations_roster_has_its_entry FOREIGN KEY (conversation_id, roster_version, roster_head)
    REFERENCES roster_log (conversation_id, roster_version, entry_hash) DEFERRABLE INITIALLY DEFERRED;`,
        replace: 'ADD CONSTRAINT conversations_roster_has_its_entry CHECK (true);',
      },
    ],
    test: { file: constraints, name: 'a roster that changes without an entry' },
  },
  {
    name: 'roster-log-is-chained',
    invariant: 'I9',
    what: 'An entry names the hash of the one before, which the database computed: a log has no forks (foreign key).',
    switchOff: [
      {
        file: migration,
        find: `ADD CONSTRAINT roster_log_chained FOREIGN KEY (conversation_id, previous_version, previous_hash)
  REFERENCES roster_log (conversation_id, roster_version, entry_hash);`,
        replace: 'ADD CONSTRAINT roster_log_chained CHECK (true);',
      },
    ],
    test: {
      file: constraints,
      name: 'a fork: a second entry of a version, or one that names another hash than that of the entry before',
    },
  },
  {
    name: 'roster-log-never-changes',
    invariant: 'I9',
    what: 'An entry of a roster’s log stays as it is (trigger).',
    switchOff: [
      {
        file: migration,
        find: 'BEFORE UPDATE OR DELETE ON roster_log FOR EACH ROW',
        replace: 'BEFORE UPDATE OR DELETE ON roster_log FOR EACH ROW WHEN (false)',
      },
    ],
    test: { file: constraints, name: 'an entry that is changed or taken away' },
  },
  {
    name: 'roster-change-is-signed',
    invariant: 'I9',
    what: 'A roster changes only by what the calling device signed (check in code).',
    switchOff: [
      {
        file: 'services/conversation/src/rosters/verify-change.ts',
        find: 'if (!held) throw',
        replace: 'if (held === undefined) throw',
      },
    ],
    test: {
      file: signedRosters,
      name: 'is refused when it is absent, by another key, with another certificate, or no change at all',
    },
  },
  {
    name: 'policy-is-the-epochs-own',
    invariant: 'I9',
    what: 'Who may have a session’s key is decided by the history policy of its own header: a change to SHARED opens no earlier epoch.',
    switchOff: [
      {
        file: 'services/conversation/src/store/entitlements.ts',
        find: 'coalesce(e.history_policy, c.history_policy) AS history_policy',
        replace: 'c.history_policy',
      },
    ],
    test: { file: signedRosters, name: 'is for the epochs to come: it opens none before, and a rotation is due' },
  },
  {
    name: 'roster-fold-asks-for-the-role',
    invariant: 'I9',
    what: 'Who reads a log refuses a change that its author’s role did not allow.',
    switchOff: [
      {
        file: 'packages/crypto/src/fold-roster.ts',
        find: 'if (role !== ADMIN && needed !== MEMBER) throw',
        replace: "if (role !== ADMIN && needed !== MEMBER && what === '') throw",
      },
    ],
    test: { file: 'packages/crypto/test/roster-log.test.ts', name: 'is refused: a member removes' },
  },
  {
    name: 'sdk-seals-by-signed-rosters',
    invariant: 'I9',
    what: 'A client seals to nobody whom the server adds to a roster without a signed change (the check of what the server tells, and that of each new header; both are off).',
    switchOff: [
      {
        file: 'packages/client/src/roster-logs.ts',
        find: 'if (!same) this.#refuse',
        replace: 'if (!same && claim.rosterVersion === 0n) this.#refuse',
      },
      {
        file: 'packages/client/src/roster-logs.ts',
        find: 'if (historyPolicy !== told.historyPolicy ||',
        replace: 'if (historyPolicy !== told.historyPolicy &&',
      },
    ],
    test: {
      file: 'packages/client/test/rosters.test.ts',
      name: 'a member whom the server adds without a signed change gets no key',
    },
  },
];
