import type { Guard } from './guard.ts';

const gateTest = 'packages/storage/test/schema-gate.test.ts';
const unfitTest = 'packages/events/test/unfit-database.test.ts';

/** I2 against builds of another release: what does not fit its database neither serves nor writes. */
export const fleets: readonly Guard[] = [
  {
    name: 'closed-gate-refuses-calls',
    invariant: 'I2',
    what: 'A process whose database does not fit its build answers no call but those that tell why, on every wire.',
    switchOff: [
      {
        file: 'packages/rpc/src/chain.ts',
        find: 'if (closed !== undefined && rpc.whileClosed !== true) throw closed;',
        replace: '',
      },
    ],
    test: {
      file: 'packages/rpc/test/fleet.test.ts',
      name: 'while the database does not fit the build, every wire refuses calls with the reason and what is missing, and answers again afterwards',
    },
  },
  {
    name: 'unfit-database-is-not-written',
    invariant: 'I2',
    what: 'No statement reaches a database that does not fit the build, whoever asks for it.',
    switchOff: [
      { file: 'packages/storage/src/database.ts', find: 'if (schema.closed) throw schema.closed;', replace: '' },
    ],
    test: {
      file: gateTest,
      name: 'a build that was rolled back beyond the floor writes nothing, and one that runs stops writing when it is overtaken',
    },
  },
  {
    name: 'floor-stops-older-builds',
    invariant: 'I2',
    what: 'A build that does not know the migration which the floor in the database names is not ready.',
    switchOff: [
      {
        file: 'packages/storage/src/schema-readiness.ts',
        find: "if (state.unknown.length > 0 && !(floor === '' || known.has(floor ?? ''))) {",
        replace: 'if (Date.now() === 0) {',
      },
    ],
    test: {
      file: 'packages/storage/test/migrations.test.ts',
      name: 'is refused to an older build once a contracting migration raised the floor',
    },
  },
  {
    name: 'migrations-as-loaded',
    invariant: 'I2',
    what: 'A process compares the migrations that it was started with, not those that somebody put beside it later.',
    switchOff: [
      {
        file: 'packages/storage/src/schema-gate.ts',
        find: 'const found = await judgeSchema(ask, local);',
        replace: 'const found = await judgeSchema(ask, readMigrations(migrationsFolder));',
      },
    ],
    test: {
      file: gateTest,
      name: 'the migrations of a build are those that it was started with, whatever lies on disk later',
    },
  },
  {
    name: 'overtaken-relay-frees-partitions',
    invariant: 'I6',
    what: 'A relay whose build no longer fits gives its partitions to replicas of one that does.',
    switchOff: [
      {
        file: 'packages/events/src/relay.ts',
        find: 'while (!stopping && !isShut()) {',
        replace: 'while (!stopping) {',
      },
    ],
    test: {
      file: unfitTest,
      name: 'a relay whose build was overtaken frees its partitions for one that fits, and takes its share again afterwards',
    },
  },
  {
    name: 'overtaken-consumer-takes-nothing',
    invariant: 'I6',
    what: 'A consumer whose build no longer fits gives back what it holds and takes nothing (at the change, and at each event: both are off).',
    switchOff: [
      {
        file: 'packages/events/src/consumer.ts',
        find: 'if (isShut()) for (const messages of subscriptions) void messages.close();',
        replace: 'if (isShut()) return;',
      },
      {
        file: 'packages/events/src/consumer.ts',
        find: 'if (stopping || isShut()) message.nak();',
        replace: 'if (stopping) message.nak();',
      },
    ],
    test: {
      file: unfitTest,
      name: 'a consumer whose build was overtaken leaves the events to one that fits, and takes its share again afterwards',
    },
  },
];
