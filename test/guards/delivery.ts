import type { Guard } from './guard.ts';

const topologyTest = 'packages/events/test/topology.test.ts';

/** I6 while servers are away, and what keeps the ways of the events. */
export const delivery: readonly Guard[] = [
  {
    name: 'offers-wait-for-events',
    invariant: 'I6',
    what: 'While events do not get out no offer is made that nobody hears of: an outage uses up no attempts.',
    switchOff: [
      {
        file: 'services/session/src/service.ts',
        find: 'isHeard: () => relay?.isFlowing() ?? false',
        replace: 'isHeard: () => true',
      },
    ],
    test: {
      file: 'test/faults/nats-away.test.ts',
      name: 'while NATS is away writes are acknowledged and hits served; when it is back all flows, in order, and nothing is lost',
    },
  },
  {
    name: 'backlog-goes-first',
    invariant: 'I6',
    what: 'A relay that was held up counts as flowing again only once its backlog is published.',
    switchOff: [
      {
        file: 'packages/events/src/relay.ts',
        find: 'isFlowing: () => flowing && bus.isConnected() && !isShut(),',
        replace: 'isFlowing: () => flowing || !bus.isConnected(),',
      },
    ],
    test: {
      file: 'packages/events/test/relay.test.ts',
      name: 'what is written gets out until NATS is away, and again once the backlog is published',
    },
  },
  {
    name: 'away-database-is-told',
    invariant: 'I6',
    what: 'A call that fails because the database is away is told to be made again, and not to be a fault.',
    switchOff: [
      {
        file: 'packages/storage/src/database.ts',
        find: 'if (isConnectionFailure(error) && !(error instanceof DatabaseAway)) throw new DatabaseAway(error as Error);',
        replace: '',
      },
    ],
    test: {
      file: 'test/faults/postgres-stopped.test.ts',
      name: 'no write that PostgreSQL acknowledged is lost when it is killed under load, and the services go on by themselves',
    },
  },
  {
    name: 'newer-catalogue-stays',
    invariant: 'I6',
    what: 'What a newer build has added to the ways of the events is left alone by an older one.',
    switchOff: [
      {
        file: 'packages/events/src/topology.ts',
        find: 'if (isLonger(live[growing], wanted[growing])) {',
        replace: 'if (isLonger(live[growing], live[growing])) {',
      },
    ],
    test: {
      file: topologyTest,
      name: 'what a newer build has added is told and left alone, also when an older one starts after it',
    },
  },
  {
    name: 'unmended-is-not-ready',
    invariant: 'I6',
    what: 'A service whose streams differ from the catalogue in what cannot be mended is not ready, and names each difference.',
    switchOff: [
      {
        file: 'packages/events/src/bus.ts',
        find: 'const differences = report?.unmended ?? [];',
        replace: 'const differences: string[] = [];',
      },
    ],
    test: {
      file: topologyTest,
      name: 'what cannot be changed in place keeps a service from being ready, each difference named, until it is gone',
    },
  },
];
