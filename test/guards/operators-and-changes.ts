import type { Guard } from './guard.ts';

const machine = 'services/session/src/domain/key-request.ts';
const cursors = 'packages/storage/src/change-cursor.ts';
const migration = 'services/session/prisma/migrations/20261124020000_operators_and_changes/migration.sql';
const model = {
  file: 'services/session/test/key-request.model.test.ts',
  name: 'whatever happens to key requests, the service and its rows do what the model of them says',
};
const operators = 'services/session/test/operators.test.ts';

/** I6, no lost request: the whole state machine against its model, what operators do, and changes that no reader misses. */
export const operatorsAndChanges: readonly Guard[] = [
  {
    name: 'declined-means-next-look',
    invariant: 'I6',
    what: 'A decline makes its request due at once (state machine).',
    switchOff: [
      {
        file: machine,
        find: "case 'declined':\n      return { ...next, nextAttemptAt: now };",
        replace: "case 'declined':\n      return next;",
      },
    ],
    test: model,
  },
  {
    name: 'declined-is-not-asked-again',
    invariant: 'I6',
    what: 'Who declined is not asked again within the request, and when all have, it ends (state machine).',
    switchOff: [
      {
        file: machine,
        find: 'const willing = holders.filter(({ declined }) => !declined);',
        replace: 'const willing = holders;',
      },
    ],
    test: model,
  },
  {
    name: 'changes-go-on-from-the-horizon',
    invariant: 'I6',
    what: 'A cursor goes on from the oldest transaction that was still running, not from the newest that was seen.',
    switchOff: [
      {
        file: cursors,
        find: 'horizon: BigInt(row.feed_horizon),',
        replace: 'horizon: BigInt(row.feed_end),',
      },
    ],
    test: {
      file: 'packages/storage/test/change-cursor.test.ts',
      name: 'of a transaction that commits late are told, though later ones were read before',
    },
  },
  {
    name: 'changed-request-is-marked',
    invariant: 'I6',
    what: 'Whoever writes a key request, its row carries the transaction that did (trigger).',
    switchOff: [
      {
        file: migration,
        find: 'CREATE TRIGGER key_requests_changed BEFORE INSERT OR UPDATE ON key_requests',
        replace: 'CREATE TRIGGER key_requests_changed BEFORE INSERT ON key_requests',
      },
    ],
    test: {
      file: 'services/session/test/key-changes.test.ts',
      name: 'begin with what is open, and then tell what became of it',
    },
  },
  {
    name: 'replay-gives-no-right',
    invariant: 'I6',
    what: "An operator's replay asks for the requester's right anew (check in code).",
    switchOff: [
      {
        file: 'services/session/src/rpc/operator/replay-key-request.ts',
        find: "if (miss.kind === 'miss' && !mayRequestKey(miss.cause)) throw notEntitled('requester', miss.cause);",
        replace: '',
      },
    ],
    test: {
      file: operators,
      name: 'gives nobody a right: a requester who is not entitled any more, or revoked, is not asked for again',
    },
  },
  {
    name: 'audit-log-only-grows',
    invariant: 'I6',
    what: 'What operators did cannot be changed, nor deleted before its time (trigger).',
    switchOff: [
      {
        file: migration,
        find: "IF OLD.happened_at < now() - interval '30 days' THEN RETURN OLD; END IF;",
        replace: 'RETURN OLD;',
      },
    ],
    test: { file: operators, name: 'takes no change, and loses only what is older than the retention' },
  },
];
