import type { Guard } from './guard.ts';

const views = 'packages/cli/test/views-exit-codes.test.ts';

/** I10: what scripts that look at the fleet go by. */
export const viewsExitCodes: readonly Guard[] = [
  {
    name: 'damaged-sessions-have-their-exit-code',
    invariant: 'I10',
    what: 'keytrail sessions ends with 4 when any of the sessions that it shows is damaged.',
    switchOff: [
      {
        file: 'packages/cli/src/commands/sessions.ts',
        find: 'sessions.filter(({ damages }) => damages.length > 0);',
        replace: 'sessions.slice(0, 1).filter(({ damages }) => damages.length > 0);',
      },
    ],
    test: { file: views, name: 'what is asked of a session that is damaged, behind one that is not ends with 4' },
  },
  {
    name: 'lost-epochs-have-their-exit-code',
    invariant: 'I10',
    what: 'keytrail conversation ends with 4 when epochs of the conversation are gone.',
    switchOff: [
      {
        file: 'packages/cli/src/commands/conversation.ts',
        find: 'if (seen.epochGaps.length === 0 && seen.currentEpoch > 0n',
        replace: 'if (seen.currentEpoch > 0n',
      },
    ],
    test: { file: views, name: 'what is asked of one whose epochs are gone ends with 4' },
  },
  {
    name: 'damaged-devices-have-their-exit-code',
    invariant: 'I10',
    what: 'keytrail devices ends with 4 when an active device lacks keys, or its user the root key.',
    switchOff: [
      {
        file: 'packages/cli/src/commands/devices.ts',
        find: 'return damaged > 0 || rootless ?',
        replace: 'return damaged > 0 && rootless ?',
      },
    ],
    test: { file: views, name: 'what is asked of a user without a root key ends with 4' },
  },
  {
    name: 'ghosts-have-their-exit-code',
    invariant: 'I10',
    what: 'keytrail online ends with 4 when entries point to a gateway that is gone.',
    switchOff: [
      {
        file: 'packages/cli/src/commands/online.ts',
        find: 'gateways.filter(({ alive, entries }) => !alive && entries > 0n)',
        replace: 'gateways.filter(({ isOwn, alive, entries }) => isOwn && !alive && entries > 0n)',
      },
    ],
    test: { file: views, name: 'what is asked of a gateway that is gone, with entries ends with 4' },
  },
  {
    name: 'unaccepted-restores-have-their-exit-code',
    invariant: 'I10',
    what: 'keytrail fence status ends with 1 until an operator has accepted a restore.',
    switchOff: [
      {
        file: 'packages/cli/src/commands/fence.ts',
        find: '!fence.open || fence.restores.some(({ acceptedAt }) => !acceptedAt)',
        replace: '!fence.open',
      },
    ],
    test: { file: views, name: 'what is asked of a restore that nobody accepted ends with 1' },
  },
  {
    name: 'letters-that-stay-have-their-exit-code',
    invariant: 'I10',
    what: 'keytrail dead-letters replay ends with 1 when the letter could not be handled and stays.',
    switchOff: [
      {
        file: 'packages/cli/src/commands/dead-letters.ts',
        find: 'return replayed.handled ? exitCodes.ok : exitCodes.refused;',
        replace: 'return replayed.handled ? exitCodes.ok : exitCodes.ok;',
      },
    ],
    test: { file: views, name: 'what is asked of a dead letter that stays ends with 1' },
  },
];
