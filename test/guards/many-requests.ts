import type { Guard } from './guard.ts';

const fairness = 'services/session/test/fairness.test.ts';
const manyKeys = 'services/session/test/many-keys.test.ts';
const dispatching = 'services/session/src/dispatch-key-request.ts';
const sharing = 'services/session/src/domain/share-room.ts';

/** Many requests at once: bounded, by turns, by priority, and none left behind. */
export const manyRequests: readonly Guard[] = [
  {
    name: 'offers-share-room',
    invariant: 'I6',
    what: 'Of one requester, no more offers stand with one holder than may; further requests wait for their turn.',
    switchOff: [
      {
        file: sharing,
        find: 'busy: standingWith(view.device) >= policy.offersPerHolder',
        replace: 'busy: policy.offersPerHolder < 0',
      },
    ],
    test: { file: fairness, name: 'waits for its turn and wants no holder, as one is there' },
  },
  {
    name: 'freed-room-goes-on',
    invariant: 'I6',
    what: 'An offer that is answered lets the next request that waits for its turn go on at once.',
    switchOff: [
      {
        file: dispatching,
        find: 'await callNextInQueue(tx, requester, room);',
        replace: 'await callNextInQueue(tx, requester, 0 * room);',
      },
    ],
    test: { file: fairness, name: 'goes on when an offer is declined or a request is cancelled, by whomever' },
  },
  {
    name: 'requesters-take-turns',
    invariant: 'I6',
    what: 'Of what is due at once, each requester has its first request looked at before anybody has a second.',
    switchOff: [
      {
        file: 'services/session/src/store/key-requests.ts',
        find: 'FROM due ORDER BY turn, next_attempt_at LIMIT 5 * $1',
        replace: 'FROM due ORDER BY next_attempt_at LIMIT $1',
      },
    ],
    test: { file: fairness, name: 'that is due all at once lets the others take turns with it' },
  },
  {
    name: 'foreground-goes-first',
    invariant: 'I6',
    what: 'What a user looks at does not wait for a turn behind what nobody looks at, of one device.',
    switchOff: [
      {
        file: sharing,
        find: 'return (foreground ? counts?.foreground : counts?.all) ?? 0;',
        replace: 'return counts?.all ?? 0;',
      },
    ],
    test: { file: fairness, name: 'has what the user looks at before what nobody does, also when that is said later' },
  },
  {
    name: 'open-requests-are-bounded',
    invariant: 'I6',
    what: 'A device has no more requests open than it may: more are refused, and none is taken that could not be kept.',
    switchOff: [
      {
        file: 'services/session/src/wanted-keys.ts',
        find: 'else if (room <= 0)',
        replace: 'else if (room < -1_000_000)',
      },
    ],
    test: {
      file: manyKeys,
      name: 'are refused beyond what one device may have open, each by itself, and what its user looks at last',
    },
  },
  {
    name: 'rejections-are-capped',
    invariant: 'I7',
    what: 'A device that rejects one envelope after the other is told that nobody can help, and does not keep all holders at work.',
    switchOff: [
      {
        file: 'services/session/src/domain/key-request.ts',
        find: "if (request.kind === 'REJECTED' && rejections >= policy.rejectionsMax) return end('attempts_exhausted');",
        replace: '',
      },
    ],
    test: {
      file: 'services/session/test/rejections.test.ts',
      name: 'is given up when so many were rejected, whoever is left',
    },
  },
  {
    name: 'offer-needs-entitlement',
    invariant: 'I9',
    what: 'A request whose requester lost its right while it waited is not offered: it ends (check in code).',
    switchOff: [
      {
        file: dispatching,
        find: 'if (!requesterEntitled)',
        replace: "if (!requesterEntitled && requester.userId === '')",
      },
    ],
    test: { file: manyKeys, name: 'end when their requester loses its right while they wait, and offer nothing' },
  },
];
