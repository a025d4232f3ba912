import type { Guard } from './guard.ts';

const finding = 'packages/cli/src/doctor/finding.ts';
const doctor = 'packages/cli/test/doctor.test.ts';

/** I10: what cannot be known is said to be unknown, by the doctor too. */
export const doctorTellsTheTruth: readonly Guard[] = [
  {
    name: 'doctor-unasked-is-unknown',
    invariant: 'I10',
    what: 'A check that nobody could be asked about is unknown, and never ok.',
    switchOff: [
      {
        file: finding,
        find: "status: 'unknown',\n      summary: 'nobody could be asked',",
        replace: "status: 'ok',\n      summary: 'nobody could be asked',",
      },
    ],
    test: { file: doctor, name: 'a check that nobody answered is unknown' },
  },
  {
    name: 'doctor-unknown-outranks-ok',
    invariant: 'I10',
    what: 'What is unknown at one place is not covered by what is ok at others, nor by a warning.',
    switchOff: [
      {
        file: finding,
        find: "['fail', 'unknown', 'warn', 'ok', 'skip']",
        replace: "['fail', 'warn', 'ok', 'unknown', 'skip']",
      },
    ],
    test: { file: doctor, name: 'what is not known is worse than a warning, and better than a failure' },
  },
  {
    name: 'doctor-silent-process-is-unknown',
    invariant: 'I10',
    what: 'While a process does not answer, the fleet is not said to run one build.',
    switchOff: [
      {
        file: 'packages/cli/src/doctor/fleet/builds.ts',
        find: 'const silent = asked.filter(({ described }) => !described).length;',
        replace: 'const silent = asked.filter(({ described }) => !described).length * 0;',
      },
    ],
    test: { file: doctor, name: 'is not ok while a process is silent' },
  },
  {
    name: 'doctor-checks-only-read',
    invariant: 'I10',
    what: 'The statement of a check runs in a transaction that can only read, in services and in the doctor.',
    switchOff: [
      {
        file: 'packages/diagnosis/src/run-database-check.ts',
        find: 'BEGIN READ ONLY;',
        replace: 'BEGIN;',
      },
    ],
    test: {
      file: 'packages/diagnosis/test/run-database-check.test.ts',
      name: 'a check cannot write, and leaves nothing behind that the next one would see',
    },
  },
  {
    name: 'doctor-misses-no-constraint',
    invariant: 'I10',
    what: 'A constraint that was declared and is not there, not validated or switched off is named.',
    switchOff: [
      {
        file: 'packages/diagnosis/src/database-checks/constraints.ts',
        find: 'if (holds) return [];',
        replace: "if (holds !== undefined || name !== '') return [];",
      },
    ],
    test: { file: 'packages/diagnosis/test/judgements.test.ts', name: 'of which one is missing fail by its name' },
  },
  {
    name: 'doctor-passes-ended-roll-outs',
    invariant: 'I10',
    what: 'A build that wrote after the last start, and no more, was the end of a roll-out: it does not fail the fleet for days.',
    switchOff: [
      {
        file: 'packages/cli/src/doctor/fleet/writers.ts',
        find: 'if (now - last.at >= recentMs)',
        replace: 'if (now < last.at)',
      },
    ],
    test: { file: doctor, name: 'says of one that wrote after the last start, and no more, until when' },
  },
  {
    name: 'doctor-looks-at-old-rows',
    invariant: 'I10',
    what: 'Of a table that is larger than what is looked at, old rows have their turn.',
    switchOff: [
      {
        file: 'packages/diagnosis/src/database-checks/sampling.ts',
        find: 'ORDER BY turn, random() LIMIT',
        // biome-ignore lint/suspicious/noTemplateCurlyInString: it is source.
        replace: 'ORDER BY turn, ${key} DESC LIMIT',
      },
    ],
    test: {
      file: 'test/contracts/row-checks.test.ts',
      name: 'IDENTITY_KEYS finds what is wrong with the oldest fifth',
    },
  },
];
