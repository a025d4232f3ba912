import type { Guard } from './guard.ts';

const judged = 'test/contracts/check-judgements.test.ts';
const ofPresence = 'services/presence/src/checks/judgements.ts';
const ofRestores = 'packages/diagnosis/src/probes/database-restored.ts';

/** I10: what a check finds fault with. */
export const checksFindFault: readonly Guard[] = [
  {
    name: 'check-leases-that-are-over',
    invariant: 'I10',
    what: 'A lease that is over is none: the devices of that gateway are offline for everybody.',
    switchOff: [{ file: ofPresence, find: 'if (mine && mine.endsInMs > 0)', replace: 'if (mine)' }],
    test: { file: judged, name: 'LEASES of one that is over is fail' },
  },
  {
    name: 'check-ghosts-of-leases-that-are-over',
    invariant: 'I10',
    what: 'An entry of a gateway whose lease is over points to nobody.',
    switchOff: [
      {
        file: ofPresence,
        find: 'leases.filter(({ endsInMs }) => endsInMs > 0).map(',
        replace: 'leases.map(',
      },
    ],
    test: { file: judged, name: 'GHOSTS of one of a lease that is over is warn' },
  },
  {
    name: 'check-devices-that-redis-lost',
    invariant: 'I10',
    what: 'A device that is attached and that Redis does not know fails PRESENCE.',
    switchOff: [{ file: ofPresence, find: 'if (lost > 0)', replace: 'if (lost > 1)' }],
    test: { file: judged, name: 'PRESENCE of one that Redis does not know is fail' },
  },
  {
    name: 'check-database-at-another-place',
    invariant: 'I4',
    what: 'A database that is at another place than it knows fails until a process has looked at it.',
    switchOff: [{ file: ofRestores, find: 'if (place !== here)', replace: "if (place === '')" }],
    test: { file: judged, name: 'DATABASE_RESTORED of another place than it knows is fail' },
  },
  {
    name: 'check-fence-that-could-not-decide',
    invariant: 'I4',
    what: 'A fence that does not know whether the database went back is not called open.',
    switchOff: [{ file: ofRestores, find: 'if (!fence.pass)', replace: "if (fence.state === '')" }],
    test: { file: judged, name: 'DATABASE_RESTORED of a fence that could not decide is fail' },
  },
  {
    name: 'check-requests-that-nobody-looks-at',
    invariant: 'I6',
    what: 'A key request whose next look is overdue fails, however young it is.',
    switchOff: [
      {
        file: 'services/session/src/checks/oldest-open-request.ts',
        find: 'if (overdueMs >= overdueFailMs)',
        replace: 'if (overdueMs > 24 * openWarnMs)',
      },
    ],
    test: { file: judged, name: 'OLDEST_OPEN_REQUEST of one that nobody looks at is fail' },
  },
  {
    name: 'check-drained-pools',
    invariant: 'I4',
    what: 'That most devices have an empty pool of either kind is a failure: somebody drains them.',
    switchOff: [
      {
        file: 'services/identity-keys/src/checks/prekey-pools.ts',
        find: 'Math.max(emptyOneTime, emptyKem)',
        replace: 'Math.min(emptyOneTime, emptyKem)',
      },
    ],
    test: { file: judged, name: 'PREKEY_POOLS of most of them empty is fail' },
  },
  {
    name: 'check-imported-rows-without-keys',
    invariant: 'I2',
    what: 'A session row of an older system without its keys is told by SESSION_ROWS.',
    switchOff: [
      {
        file: 'services/session/src/checks/session-rows.ts',
        find: 'if (importedWithoutKeys > 0)',
        replace: 'if (importedWithoutKeys > looked)',
      },
    ],
    test: { file: judged, name: 'SESSION_ROWS of an import without is warn' },
  },
  {
    name: 'check-spans-that-do-not-arrive',
    invariant: 'I10',
    what: 'A receiver that took nothing of what was just made fails TELEMETRY, also where it refused nothing.',
    switchOff: [
      {
        file: 'packages/diagnosis/src/probes/telemetry.ts',
        find: 'if (spans.exported === before.spans.exported)',
        replace: 'if (spans.exported < before.spans.exported)',
      },
    ],
    test: { file: judged, name: 'TELEMETRY of one that was not is fail' },
  },
];
