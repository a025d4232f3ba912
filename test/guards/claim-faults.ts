import type { Guard } from './guard.ts';

const claims = 'services/identity-keys/src/store/claims.ts';
const faults = 'services/identity-keys/test/claim-faults.test.ts';

/** I4, through crashes of the process and over replicas. */
export const claimFaults: readonly Guard[] = [
  {
    name: 'claim-recorded-at-its-commit',
    invariant: 'I4',
    what: 'The statement that takes prekeys also records the claim: a retry after a crash finds what was taken.',
    switchOff: [{ file: claims, find: 'FROM taken HAVING count(*) > 0', replace: 'FROM taken HAVING count(*) < 0' }],
    test: {
      file: faults,
      name: 'leaves one claim: the retry at the other replica, and at its successor, gets the bundle that was taken',
    },
  },
  {
    name: 'issue-order-is-upload-order',
    invariant: 'I4',
    what: 'The oldest upload is handed out first, whatever its id (order by seq, which counts uploads).',
    switchOff: [
      {
        file: claims,
        find: 'ORDER BY p.seq LIMIT 1 FOR UPDATE SKIP LOCKED) o ON true',
        replace: 'ORDER BY p.key_id LIMIT 1 FOR UPDATE SKIP LOCKED) o ON true',
      },
    ],
    test: {
      file: faults,
      name: 'each get prekeys in the order of upload, and one claimer alone gets all of them in that order',
    },
  },
];
