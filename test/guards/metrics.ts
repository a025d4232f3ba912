import type { Guard } from './guard.ts';

/** I6 and I10, seen from outside: what ended is measured, and what was missed can be looked at. */
export const seenByOperators: readonly Guard[] = [
  {
    name: 'ends-of-requests-are-measured',
    invariant: 'I6',
    what: 'A key request that ends without a key is measured, by how it ended: none ends silently for those who watch.',
    switchOff: [
      {
        file: 'services/session/src/key-request-events.ts',
        find: "endedBecause = '' } = request;\n  measureEnd(tx, request);",
        replace: "endedBecause = '' } = request;",
      },
    ],
    test: {
      file: 'services/session/test/key-request-metrics.test.ts',
      name: 'a key request is measured from its making to its end, by how it ended',
    },
  },
  {
    name: 'unanswered-requests-are-late',
    invariant: 'I6',
    what: 'A request whose offers no holder answered counts against the objective of the time to a key.',
    switchOff: [
      {
        file: 'services/session/src/key-request-metrics.ts',
        find: "endedBecause === 'attempts_exhausted' && attempt > attemptBase",
        replace: 'endedBecause === undefined && attempt > attemptBase',
      },
    ],
    test: {
      file: 'services/session/test/key-request-metrics.test.ts',
      name: 'the objective counts a request that no holder answered, and not one that ends for the envelopes rejected before',
    },
  },
  {
    name: 'postponed-looks-are-counted',
    invariant: 'I6',
    what: 'A look at a request that a silent peer keeps from being made is counted: the request is never overdue for long.',
    switchOff: [
      {
        file: 'services/session/src/dispatch-key-request.ts',
        find: '  tx.afterCommit(() => countPostponed(saved.size, because));\n',
        replace: '',
      },
    ],
    test: {
      file: 'services/session/test/key-request-metrics.test.ts',
      name: 'a look that cannot be made is counted, each time',
    },
  },
  {
    name: 'collector-keeps-misses',
    invariant: 'I10',
    what: 'The collector keeps every trace of a miss, whose status is no error, by its attribute.',
    switchOff: [
      {
        file: 'deploy/otel/collector.yaml',
        find: 'boolean_attribute: { key: keytrail.miss, value: true }',
        replace: 'boolean_attribute: { key: keytrail.miss, value: false }',
      },
    ],
    test: {
      file: 'test/docs/alerts.test.ts',
      name: 'the collector keeps the traces of misses by the attribute that says so, whatever their status',
    },
  },
  {
    name: 'alerts-ask-for-what-exists',
    invariant: 'I10',
    what: 'A series that an alert asks for is one that the registry declares: an alert on a name that is gone is found.',
    switchOff: [
      {
        file: 'packages/telemetry/src/metric-registry.ts',
        find: "name: 'keytrail.misses',",
        replace: "name: 'keytrail.missed',",
      },
    ],
    test: {
      file: 'test/docs/alerts.test.ts',
      name: 'every expression of an alert and of a recording asks for series and labels that exist',
    },
  },
];
