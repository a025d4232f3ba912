import type { Guard } from './guard.ts';

/** I10: what operators see of the fleet's rows, and what they leave behind. */
export const operatorViews: readonly Guard[] = [
  {
    name: 'views-are-written-down-first',
    invariant: 'I10',
    what: 'An operator gets no answer that the audit log could not take.',
    switchOff: [
      {
        file: 'services/conversation/src/rpc/operator/describe-conversation.ts',
        find: '        await recordDone(db);\n',
        replace: '        await recordDone(db).catch(() => {});\n',
      },
    ],
    test: {
      file: 'services/conversation/test/operators.test.ts',
      name: 'gets no answer that could not be written down',
    },
  },
  {
    name: 'damaged-rows-are-seen',
    invariant: 'I10',
    what: 'A session row without its ephemeral key is shown as what it is.',
    switchOff: [
      {
        file: 'services/session/src/rpc/operator/session-view.ts',
        find: 'damages: damagesOf(seen),',
        replace: 'damages: [],',
      },
    ],
    test: {
      file: 'services/session/test/operator-sessions.test.ts',
      name: 'are told with what is missing, where somebody dropped the constraints',
    },
  },
  {
    name: 'replayed-letter-goes-with-its-handling',
    invariant: 'I6',
    what: 'A dead letter is gone only together with what its handler wrote: one that fails again stays.',
    switchOff: [
      {
        file: 'packages/events/src/dead-letters.ts',
        find: '        throw error;\n      });\n',
        replace: '      });\n',
      },
    ],
    test: {
      file: 'services/session/test/dead-letters.test.ts',
      name: 'stay as they are when they cannot be handled, with the problem told',
    },
  },
];
