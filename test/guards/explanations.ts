import type { Guard } from './guard.ts';

const explaining = 'services/session/test/explain-key.test.ts';
const anyFacts = 'services/session/test/explain-key.property.test.ts';

/** I10: what operators are told of a miss, or of a key that is there. */
export const explanations: readonly Guard[] = [
  {
    name: 'explanations-rank-the-cause-first',
    invariant: 'I10',
    what: 'What alone explains the miss stands before what is only worth knowing.',
    switchOff: [
      {
        file: 'services/session/src/domain/findings.ts',
        find: "(explainsMiss || code === 'READABLE' ? 0 : findingCatalogue.length)",
        replace: '0',
      },
    ],
    test: {
      file: anyFacts,
      name: 'any facts, any peer away: never empty, no code twice, what explains first, and nothing that nobody said',
    },
  },
  {
    name: 'explanations-blame-no-envelope-of-others',
    invariant: 'I10',
    what: 'Envelopes of others that are gone explain nothing to a device that nobody was to seal to.',
    switchOff: [
      {
        file: 'services/session/src/domain/damage-findings.ts',
        find: "explains && own === 'missing'",
        replace: "explains && own !== 'present'",
      },
    ],
    test: {
      file: anyFacts,
      name: 'a device that nobody was to seal to is told that, whichever envelopes of others are gone and whoever wrote the row',
    },
  },
  {
    name: 'explanations-guess-no-peer',
    invariant: 'I10',
    what: 'That no holder exists is not said while it could not be asked.',
    switchOff: [
      {
        file: 'services/session/src/domain/recovery-findings.ts',
        find: 'if (!holders.known || holders.value.eligible > 0) return undefined;',
        replace: 'if (holders.known && holders.value.eligible > 0) return undefined;',
      },
    ],
    test: {
      file: anyFacts,
      name: 'any facts, any peer away: never empty, no code twice, what explains first, and nothing that nobody said',
    },
  },
  {
    name: 'explanations-are-audited',
    invariant: 'I10',
    what: 'Who asked about whom is in the audit log before the explanation is shown.',
    switchOff: [
      {
        file: 'services/session/src/rpc/operator/explain-key.ts',
        find: 'await recordDone(parts.db, {',
        replace: 'void ({',
      },
    ],
    test: {
      file: explaining,
      name: 'is audited by its ids before anything is shown, also where the answer is a refusal',
    },
  },
  {
    name: 'presence-that-lost-is-told',
    invariant: 'I10',
    what: 'A request that waits because presence does not know who is attached is told as that.',
    switchOff: [
      {
        file: 'services/session/src/domain/recovery-findings.ts',
        find: 'if (without > 0)',
        replace: 'if (without > 1_000_000)',
      },
    ],
    test: { file: explaining, name: 'that waits because presence lost who is attached, is told as that' },
  },
];
