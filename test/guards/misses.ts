import type { Guard } from './guard.ts';

const explaining = 'services/session/src/domain/explain-miss.ts';
const misses = 'services/session/test/misses.test.ts';

/** I10, every miss is explained. */
export const explainedMisses: readonly Guard[] = [
  {
    name: 'no-guess-without-identity-keys',
    invariant: 'I10',
    what: 'While identity-keys cannot be asked, the answer is EXPLANATION_INCOMPLETE, not a guess about the device.',
    switchOff: [
      {
        file: explaining,
        find: "if (!facts.registration.known) return { kind: 'incomplete', peer: facts.registration.peer };\n  const registration = facts.registration.value;",
        replace:
          'const registration: DeviceFacts = facts.registration.known ? facts.registration.value : { registered: false };',
      },
    ],
    test: { file: misses, name: 'is EXPLANATION_INCOMPLETE while identity-keys is away' },
  },
  {
    name: 'no-guess-without-presence',
    invariant: 'I10',
    what: 'While presence cannot be asked, the state of recovery is not guessed.',
    switchOff: [
      {
        file: explaining,
        find: "if (!facts.holders.known) return { kind: 'incomplete', peer: facts.holders.peer };\n  const { eligible, online } = facts.holders.value;",
        replace: 'const { eligible, online } = facts.holders.known ? facts.holders.value : { eligible: 0, online: 0 };',
      },
    ],
    test: { file: misses, name: 'is EXPLANATION_INCOMPLETE while presence is away' },
  },
  {
    name: 'no-guess-without-conversation',
    invariant: 'I10',
    what: 'While conversation cannot be asked, a member is not told what strangers are told.',
    switchOff: [
      {
        file: explaining,
        find: "if (!facts.entitlement.known) return { kind: 'incomplete', peer: facts.entitlement.peer };",
        replace: 'if (!facts.entitlement.known) return strangerAnswer;',
      },
    ],
    test: { file: misses, name: 'is EXPLANATION_INCOMPLETE while conversation is away' },
  },
  {
    name: 'strangers-get-one-answer',
    invariant: 'I10',
    what: 'A stranger is told the same about a conversation that exists and one that does not.',
    switchOff: [
      {
        file: explaining,
        find: 'if (!entitlement.conversationKnown || !entitlement.everMember) return strangerAnswer;',
        replace: 'if (!entitlement.conversationKnown) return strangerAnswer;',
      },
    ],
    test: { file: misses, name: 'gets one uniform answer on the grpc wire' },
  },
  {
    name: 'strangers-get-one-answer-from-conversation',
    invariant: 'I10',
    what: 'Every method of conversation gives a stranger the same answer (membership in the read itself).',
    switchOff: [
      {
        file: 'services/conversation/src/store/reads.ts',
        find: 'where: { conversationId, memberships: { some: { userId, toEpoch: null } } },',
        replace: "where: { conversationId, NOT: { conversationId: { in: userId === '' ? [conversationId] : [] } } },",
      },
    ],
    test: {
      file: 'services/conversation/test/input.test.ts',
      name: 'gets the same answer for a conversation that exists and for one that does not, from every method',
    },
  },
  {
    name: 'causes-by-precedence',
    invariant: 'I10',
    what: 'A cause is told only when the facts admit it: a withheld key is not called missing.',
    switchOff: [
      {
        file: explaining,
        find: 'if (stored.withheldReason !== undefined)',
        replace: "if (stored.withheldReason === '')",
      },
    ],
    test: { file: misses, name: 'KEY_WITHHELD: the initiator withheld it' },
  },
  {
    name: 'imported-rows-say-what-they-lack',
    invariant: 'I10',
    what: 'A row of an older system without its ephemeral key is told as that, not as a missing envelope.',
    switchOff: [
      {
        file: explaining,
        find: 'if (!stored.hasEphemeralKey)',
        replace: 'if (stored.epoch < 0n)',
      },
    ],
    test: { file: misses, name: 'INITIATOR_EPHEMERAL_MISSING: an imported row lacks it' },
  },
  {
    name: 'miss-carries-its-trace',
    invariant: 'I10',
    what: 'A miss names the trace in which it can be followed over every hop (by the service, and by the chain around every handler: both are off).',
    switchOff: [
      { file: 'services/session/src/miss.ts', find: 'traceId: call.traceId,', replace: "traceId: ''," },
      {
        file: 'packages/rpc/src/answer-refusal.ts',
        find: 'traceId: miss.traceId || traceId,',
        replace: 'traceId: miss.traceId,',
      },
    ],
    test: { file: misses, name: 'SESSION_UNKNOWN: the conversation has no such session' },
  },
];
