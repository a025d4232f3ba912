import type { Guard } from './guard.ts';

const restored = 'services/identity-keys/test/restored-database.test.ts';
const judging = 'packages/storage/test/restore-fence-judge.test.ts';
const running =
  'a database that was set back: the one database hands out no prekey again that was claimed in the time that is gone, through services that ran all the while';
const startedLater =
  'a database that was set back: its whole server hands out no prekey again through a service that is started only afterwards';

/** On databases that went back in time. */
export const restores: readonly Guard[] = [
  {
    name: 'restored-pools-are-voided',
    invariant: 'I4',
    what: 'A database that went back in time has its pools emptied before it hands out a prekey.',
    switchOff: [
      {
        file: 'services/identity-keys/src/store/recover-from-restore.ts',
        find: '  await tx.query(empty, []);',
        replace: '  void empty;',
      },
    ],
    test: { file: restored, name: running },
  },
  {
    name: 'position-is-known-outside',
    invariant: 'I4',
    what: 'A database at a position before the one confirmed outside went back, also for a process that has never seen it.',
    switchOff: [
      {
        file: 'packages/storage/src/restore-fence/judge.ts',
        find: "const confirmed = outside !== 'unknown' && outside ? outside.confirmed : 0n;",
        replace: 'const confirmed = 0n;',
      },
    ],
    test: { file: restored, name: startedLater },
  },
  {
    name: 'claims-pass-the-fence',
    invariant: 'I4',
    what: 'A database function refuses claims of those who know a later position, another incarnation or an earlier start of the server, and all while the fence is closed.',
    switchOff: [
      {
        file: 'packages/storage/src/restore-fence/migration.ts',
        find: "  IF NOT FOUND THEN\n    RAISE EXCEPTION 'the database does not stand",
        replace: "  IF false THEN\n    RAISE EXCEPTION 'the database does not stand",
      },
    ],
    test: {
      file: 'packages/storage/test/restore-fence-constraints.test.ts',
      name: 'who names what a database cannot know does not pass: another incarnation, a later position, an earlier start, and nobody while it is closed',
    },
  },
  {
    name: 'lost-uploads-are-not-repeated',
    invariant: 'I4',
    what: 'After a restore CheckKeys asks no device for prekeys that the database has lost (check in code).',
    switchOff: [
      {
        file: 'services/identity-keys/src/rpc/check-keys.ts',
        find: 'neverUploaded: uploads_lost ? [] : neverUploaded',
        replace: 'neverUploaded: uploads_lost ? neverUploaded : neverUploaded',
      },
    ],
    test: {
      file: restored,
      name: 'a device is not asked to upload prekeys once more that its database has lost: they may have been claimed',
    },
  },
  {
    name: 'lost-outside-voids-nothing',
    invariant: 'I4',
    what: 'A store outside that lost what it knew is written anew from the database: nothing is voided.',
    switchOff: [
      {
        file: 'packages/storage/src/restore-fence/judge.ts',
        find: "if (outside === undefined) return { kind: 'adopt', because: 'nothing is known of it outside' };",
        replace: "if (outside === undefined) return restored('nothing is known of it outside');",
      },
    ],
    test: { file: judging, name: 'nothing is voided when the store outside lost everything' },
  },
  {
    name: 'numbers-leap-after-a-restore',
    invariant: 'I9',
    what: 'After a restore revocations have numbers beyond all that the forgotten ones had: who reads the list by number skips none.',
    switchOff: [
      {
        file: 'services/identity-keys/src/store/recover-from-restore.ts',
        find: '  await tx.query(leapRevocations, []);',
        replace: '  void leapRevocations;',
      },
    ],
    test: {
      file: restored,
      name: 'a revocation after a restore has a number that nobody has read past, though the database forgot how far it was',
    },
  },
  {
    name: 'incarnation-ends-cursors',
    invariant: 'I6',
    what: 'A cursor of changes is of one history of the database: after a restore readers begin anew.',
    switchOff: [
      {
        file: 'packages/storage/src/change-cursor.ts',
        find: ', (SELECT incarnation FROM restore_fence)) AS feed_database',
        replace: ') AS feed_database',
      },
    ],
    test: {
      file: 'packages/storage/test/change-cursor.test.ts',
      name: 'a cursor of before a restore begins anew, also when the transactions since then have come past it',
    },
  },
];
