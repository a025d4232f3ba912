import type { Guard } from './guard.ts';

const findings = 'services/session/test/explain-key.findings.test.ts';
const damage = 'services/session/src/domain/damage-findings.ts';
const anyFacts = 'services/session/test/explain-key.property.test.ts';

/** I10: what an explanation must say, and must not. */
export const toldExplanations: readonly Guard[] = [
  {
    name: 'explanations-of-strangers-blame-no-damage',
    invariant: 'I10',
    what: 'Who has no right to a key is told that, and not that damaged rows keep it away.',
    switchOff: [
      {
        file: 'services/session/src/domain/cause-findings.ts',
        find: "return miss === undefined || miss.kind === 'incomplete' || !withoutRight.has(miss.cause);",
        replace: "return miss === undefined || miss.kind === 'incomplete' || withoutRight.size > 0;",
      },
    ],
    test: {
      file: anyFacts,
      name: 'a reader without a right is never told that damaged rows are what keeps the key away',
    },
  },
  {
    name: 'explanations-explain',
    invariant: 'I10',
    what: 'A key that cannot be read is explained by one finding at least, or what could not be asked is named.',
    switchOff: [
      {
        file: 'services/session/src/domain/cause-findings.ts',
        find: 'return { code, summary, evidence: told, remedy, explainsMiss: true };',
        replace: 'return { code, summary, evidence: told, remedy, explainsMiss: false };',
      },
    ],
    test: { file: anyFacts, name: 'an unreadable key is explained, or what could not be found out is named' },
  },
  {
    name: 'explanations-hear-the-device',
    invariant: 'I10',
    what: 'A key that its device said it cannot use is not called readable.',
    switchOff: [
      {
        file: 'services/session/src/domain/explain-key.ts',
        find: 'facts.readable && !found.some(({ explainsMiss }) => explainsMiss)',
        replace: 'facts.readable',
      },
    ],
    test: {
      file: anyFacts,
      name: 'any facts, any peer away: never empty, no code twice, what explains first, and nothing that nobody said',
    },
  },
  {
    name: 'explanations-name-whom-they-lack',
    invariant: 'I10',
    what: 'keytrail explain ends with 4 when a service could not be asked.',
    switchOff: [
      {
        file: 'packages/cli/src/explanation-text.ts',
        find: 'return exitCodes.incomplete;',
        replace: 'return exitCodes.ok;',
      },
    ],
    test: {
      file: 'packages/cli/test/explanation-text.test.ts',
      name: 'an explanation that all services took part in ends with 0, and one that lacks any with 4 and its name',
    },
  },
  {
    name: 'explanations-blame-no-build-of-today',
    invariant: 'I10',
    what: 'A build that knew all that its database had is not called an old one.',
    switchOff: [
      {
        file: damage,
        find: 'session.writerSchema >= databaseThen) return undefined;',
        replace: 'session.writerSchema > databaseThen) return undefined;',
      },
    ],
    test: { file: findings, name: 'of a writer that knew all that its database had' },
  },
  {
    name: 'explanations-name-sessions-that-are-gone',
    invariant: 'I10',
    what: 'A session that conversation committed and that has no rows is told as gone, and not as unknown.',
    switchOff: [
      {
        file: damage,
        find: "return standing?.standing === 'committed' || epochs.some(",
        replace: "return standing?.standing !== 'committed' && epochs.some(",
      },
    ],
    test: { file: findings, name: 'of rows that are gone, of a session that is committed, with its epoch' },
  },
  {
    name: 'explanations-count-the-erased',
    invariant: 'I10',
    what: 'Envelopes that went with their erased users are not called missing.',
    switchOff: [
      {
        file: 'services/session/src/domain/session-damage.ts',
        find: 'Math.max(0, envelopesExpected - envelopesPresent - envelopesErased)',
        replace: 'Math.max(0, envelopesExpected - envelopesPresent - 0 * envelopesErased)',
      },
    ],
    test: { file: findings, name: 'envelopes of users who were erased are not missing' },
  },
  {
    name: 'explanations-tell-lost-presence-from-waiting',
    invariant: 'I10',
    what: 'That presence lost who is attached explains a miss only of a request that waits for nothing else.',
    switchOff: [
      {
        file: 'services/session/src/domain/recovery-findings.ts',
        find: 'explainsMiss: waits && online === 0,',
        replace: 'explainsMiss: waits || online === 0,',
      },
    ],
    test: { file: findings, name: 'explains the miss only of a request that waits for nothing else' },
  },
  {
    name: 'explanations-hear-declines',
    invariant: 'I10',
    what: 'That holders declined is told with a request that still waits.',
    switchOff: [
      {
        file: 'services/session/src/domain/recovery-findings.ts',
        find: 'else if (isOpen(request.state)) found.push(declines(request), ...openRequest(facts, request));',
        replace: 'else if (isOpen(request.state)) found.push(...openRequest(facts, request));',
      },
    ],
    test: { file: findings, name: 'a request whose offer was declined' },
  },
  {
    name: 'explanations-believe-the-device',
    invariant: 'I10',
    what: 'keytrail explain does not say that a device can read a key that it rejected.',
    switchOff: [
      {
        file: 'packages/cli/src/explanation-text.ts',
        find: 'return readable && !findings.some(({ explainsMiss }) => explainsMiss);',
        replace: 'return readable || findings.length === 0;',
      },
    ],
    test: {
      file: 'packages/cli/test/explanation-text.test.ts',
      name: 'a device that rejected the key that is there is told as one that cannot read',
    },
  },
  {
    name: 'explanations-tell-a-reason-once',
    invariant: 'I10',
    what: 'Of a session whose rows are gone it is not told besides that the conversation never had it.',
    switchOff: [
      {
        file: 'services/session/src/domain/cause-findings.ts',
        find: 'return [...behind, isBehind ? asTold(told) : told];',
        replace: 'return [...behind, isBehind ? told : told];',
      },
    ],
    test: {
      file: findings,
      name: 'a session whose rows are gone is told as that: that it is unknown is what clients hear of it',
    },
  },
  {
    name: 'explanations-tell-what-is-decided',
    invariant: 'I10',
    what: 'A cause that does not rest on the peer that stays silent is told.',
    switchOff: [
      {
        file: 'services/session/src/domain/cause-findings.ts',
        find: 'if (!facts.decided) return [];',
        replace: 'if (!facts.decided || facts.miss) return [];',
      },
    ],
    test: { file: findings, name: 'a cause that the silent peer has no part in is told, with what cannot be said' },
  },
];
