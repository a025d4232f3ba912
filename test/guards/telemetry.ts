import type { Guard } from './guard.ts';

/** What lets a miss be followed over every hop. */
export const keptMisses: readonly Guard[] = [
  {
    name: 'devices-do-not-choose-sampling',
    invariant: 'I10',
    what: 'The wish of a device to have its trace sampled is not followed, on either wire: nobody outside fills the traces in which misses are to be found.',
    switchOff: [
      {
        file: 'packages/rpc/src/server-call.ts',
        find: "arrival.authorization?.startsWith(serviceScheme) ? 'later' : 'ours'",
        replace: "'theirs' as const",
      },
    ],
    test: {
      file: 'packages/rpc/test/lifecycle.test.ts',
      name: "of a device on every wire, and its wish to be sampled on none: both are the public's",
    },
  },
  {
    name: 'peers-keep-the-trace-of-a-miss',
    invariant: 'I10',
    what: 'A peer that calls because of a miss has its part of the trace kept by each process that it asks.',
    switchOff: [
      {
        file: 'packages/rpc/src/server-call.ts',
        find: "if (caller.kind === 'service' && traceparent !== undefined && isSampled(traceparent)) followSampling(this.#span);",
        replace: 'void [traceparent, isSampled, followSampling];',
      },
    ],
    test: { file: 'packages/rpc/test/lifecycle.test.ts', name: 'of a peer, with its wish to be sampled' },
  },
  {
    name: 'a-miss-that-the-sdk-tells-is-kept',
    invariant: 'I10',
    what: 'A span that says by its attribute that it saw a miss has its part of the trace exported at any sampling rate: the SDK has no other way to say so.',
    switchOff: [
      {
        file: 'packages/telemetry/src/local-parts.ts',
        find: 'if (span.attributes[attr.miss] === true) return true;',
        replace: '',
      },
    ],
    test: {
      file: 'packages/telemetry/test/keeping.test.ts',
      name: 'a miss that is told by the attribute alone leaves its local part',
    },
  },
  {
    name: 'a-miss-is-linked-to-the-last-write',
    invariant: 'I10',
    what: 'The span of a miss leads to the trace of the last write of the session, and of the conversation.',
    switchOff: [
      {
        file: 'services/session/src/miss.ts',
        find: "linksToWrites(local.session?.createdTraceparent ?? '', conversationTraceId));",
        replace: "linksToWrites('', conversationTraceId));",
      },
    ],
    test: {
      file: 'services/session/test/miss-telemetry.test.ts',
      name: 'a miss is counted by its cause, and its span leads to the trace of the write',
    },
  },
];
