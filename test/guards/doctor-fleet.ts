import type { Guard } from './guard.ts';

const examine = 'packages/cli/src/doctor/examine.ts';
const processes = 'packages/cli/src/doctor/processes.ts';
const fleet = 'packages/cli/test/doctor-fleet.test.ts';

/** I10: whom the doctor asks, and what it takes for an answer. */
export const doctorAsksTheFleet: readonly Guard[] = [
  {
    name: 'doctor-asks-every-process',
    invariant: 'I10',
    what: 'What is a process’s own is asked of each: a sound replica does not cover a faulty one.',
    switchOff: [
      {
        file: examine,
        find: 'mine.map((process) => (process.described ?',
        replace: 'mine.slice(0, 1).map((process) => (process.described ?',
      },
    ],
    test: {
      file: fleet,
      name: 'is asked by itself for what is its own: what one of them says is not covered by another',
    },
  },
  {
    name: 'doctor-older-build-is-unknown',
    invariant: 'I10',
    what: 'A check that the build of a process does not have is unknown there.',
    switchOff: [
      {
        file: examine,
        find: "status: 'unknown',\n    summary: 'its build does not have this check',",
        replace: "status: 'ok',\n    summary: 'its build does not have this check',",
      },
    ],
    test: { file: fleet, name: 'whose build does not have a check leaves that unknown, and does not pass it' },
  },
  {
    name: 'doctor-strange-status-is-unknown',
    invariant: 'I10',
    what: 'A status that this command does not know, of a newer build, is not taken for ok.',
    switchOff: [
      {
        file: processes,
        find: "statuses[result.status] ?? 'unknown'",
        replace: "statuses[result.status] ?? 'ok'",
      },
    ],
    test: { file: fleet, name: '(99) is told as unknown, and the command ends with 5' },
  },
  {
    name: 'doctor-unknown-has-its-exit-code',
    invariant: 'I10',
    what: 'What could not be found out does not end with 0.',
    switchOff: [
      {
        file: 'packages/cli/src/doctor/finding.ts',
        find: '{ ok: 0, fail: 1, warn: 4, unknown: 5 }',
        replace: '{ ok: 0, fail: 1, warn: 4, unknown: 0 }',
      },
    ],
    test: { file: fleet, name: '(5) is told as unknown, and the command ends with 5' },
  },
  {
    name: 'doctor-knows-who-answers',
    invariant: 'I10',
    what: 'A process of another service behind a target is no answer of the one that was meant.',
    switchOff: [{ file: processes, find: 'if (told !== service) return {', replace: "if (told === '') return {" }],
    test: { file: fleet, name: 'that is of another service than its target says fails, and is asked nothing' },
  },
  {
    name: 'doctor-not-ready-fails',
    invariant: 'I10',
    what: 'A process that answers and is not ready is not called reachable.',
    switchOff: [
      {
        file: 'packages/cli/src/doctor/fleet/reachable.ts',
        find: 'if (!described.ready)',
        replace: "if (!described.ready && described.notReadyBecause === '')",
      },
    ],
    test: { file: fleet, name: 'that is not ready fails, and one that is ready and warns is a warning' },
  },
  {
    name: 'doctor-asks-the-next-process',
    invariant: 'I10',
    what: 'Rows are asked of another replica when the first cannot tell.',
    switchOff: [
      {
        file: examine,
        find: "if (place.status !== 'unknown') return { ...place, where: service };",
        replace: 'return { ...place, where: service };',
      },
    ],
    test: { file: fleet, name: 'is asked of the next one when the first cannot tell' },
  },
  {
    name: 'doctor-looks-for-what-was-named',
    invariant: 'I10',
    what: 'That no session is missing is not said of those that nobody named.',
    switchOff: [{ file: examine, find: "if (named.status === 'unknown') return [named];", replace: '' }],
    test: {
      file: fleet,
      name: 'is unknown while conversation cannot name any: that none is missing would be said of nothing',
    },
  },
  {
    name: 'doctor-sees-peers-of-other-contracts',
    invariant: 'I10',
    what: 'A contract that only a peer outside the targets has is seen.',
    switchOff: [
      {
        file: 'packages/cli/src/doctor/fleet/builds.ts',
        find: '.filter(({ contractDigest }) => contractDigest && ',
        replace: '.filter(({ contractDigest }) => !contractDigest && ',
      },
    ],
    test: { file: fleet, name: 'contracts are compared with those of peers that no target names, too' },
  },
  {
    name: 'doctor-compares-clocks',
    invariant: 'I10',
    what: 'The clocks of processes are compared with each other, not only each with its database.',
    switchOff: [
      {
        file: examine,
        find: "return code === 'CLOCKS' ? [...places, { where: 'fleet', ...judgeClocks(parts.processes.asked) }] : places;",
        replace: 'return places.filter(() => judgeClocks !== undefined);',
      },
    ],
    test: {
      file: fleet,
      name: 'a process whose clock is far from that of the others fails, by the time that it tells',
    },
  },
  {
    name: 'doctor-reads-past-the-services',
    invariant: 'I10',
    what: 'With --direct the doctor reads the rows itself, whatever the service says of them.',
    switchOff: [{ file: examine, find: 'if (!(direct && databases.has(service)))', replace: 'if (!direct || direct)' }],
    test: {
      file: 'packages/cli/test/doctor-direct.test.ts',
      name: 'is read with --direct, whatever a process tells',
    },
  },
  {
    name: 'doctor-asks-whether-writes-are-taken',
    invariant: 'I10',
    what: 'A database that answers, and takes no writes, is not called sound.',
    switchOff: [
      {
        file: 'packages/diagnosis/src/probes/database.ts',
        find: 'if (readsOnly)',
        replace: 'if (readsOnly && recovering)',
      },
    ],
    test: { file: 'packages/cli/test/doctor-databases.test.ts', name: 'that takes no writes fails, and is read' },
  },
  {
    name: 'doctor-knows-what-was-replaced',
    invariant: 'I10',
    what: 'A peer that answered before the last start of its service is not told as one that runs.',
    switchOff: [
      {
        file: 'packages/cli/src/doctor/fleet/builds.ts',
        find: 'fresh && seenMs > lastStartOf(peer.service, asked)',
        replace: 'fresh && lastStartOf(peer.service, asked) !== seenMs',
      },
    ],
    test: {
      file: 'packages/cli/test/doctor.test.ts',
      name: 'takes a peer that answered before the last start of its service for what that start replaced',
    },
  },
  {
    name: 'doctor-leaves-no-users-for-nothing',
    invariant: 'I10',
    what: 'The way of a key is not walked where a check has failed that it would end at.',
    switchOff: [
      {
        file: 'packages/cli/src/doctor/following.ts',
        find: "finding.code === code && finding.status === 'fail'",
        replace: "finding.code === code && finding.status === 'skip'",
      },
    ],
    test: {
      file: fleet,
      name: 'is not tried by REPRODUCTION, which would end there, and leave users that nobody erases',
    },
  },
  {
    name: 'lost-migration-is-tried-first',
    invariant: 'I10',
    what: 'A migration that can be applied is not noted as applied.',
    switchOff: [
      {
        file: 'packages/storage/src/mark-applied.ts',
        find: 'await tryOut(client, name, migration.sql, lockTimeoutMs);',
        replace: 'if (name === lockTimeoutMs.toString()) await tryOut(client, name, migration.sql, lockTimeoutMs);',
      },
    ],
    test: {
      file: 'packages/cli/test/migrate.test.ts',
      name: 'is not noted while it can be applied, nor before one that comes earlier, and the trial leaves nothing',
    },
  },
];
