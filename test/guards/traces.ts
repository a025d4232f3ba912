import type { Guard } from './guard.ts';

const traces = 'packages/traces/src';

/** I10, a miss is followed over every hop: what is missing from its trace is told, and the trace is still there. */
export const followedMisses: readonly Guard[] = [
  {
    name: 'misses-stay-longest',
    invariant: 'I10',
    what: 'The local store forgets ordinary traces before those of misses, and before the write that a miss points to.',
    switchOff: [
      {
        file: `${traces}/memory.ts`,
        find: 'if (wasEvidence || isMiss(span) || this.#pointedTo.has(span.traceId)) {',
        replace: 'if (wasEvidence) {',
      },
    ],
    test: {
      file: 'packages/traces/test/memory.test.ts',
      name: 'ordinary traces go before misses, and before the write that a miss points to',
    },
  },
  {
    name: 'unserved-calls-are-named',
    invariant: 'I10',
    what: 'A call whose server left no span is a missing hop, with its service and operation.',
    switchOff: [
      {
        file: `${traces}/expected-hops.ts`,
        find: "if (children.some((child) => child.span.kind === 'server')) return [];",
        replace: 'if (children.length >= 0) return [];',
      },
    ],
    test: {
      file: 'packages/cli/test/trace.test.ts',
      name: 'points out the service and the operation that are missing, says why, and ends with 4',
    },
  },
  {
    name: 'waterfalls-escape',
    invariant: 'I10',
    what: 'What spans say is text in the waterfall, and no markup.',
    switchOff: [{ file: `${traces}/html/markup.ts`, find: `/[&<>"']/g`, replace: `/[&"']/g` }],
    test: {
      file: 'packages/traces/test/html.test.ts',
      name: 'what spans say is text in the waterfall, wherever it stands',
    },
  },
  {
    name: 'reports-tell-pseudonyms-only',
    invariant: 'I10',
    what: 'A trace that is printed as JSON or attached to an incident names users and devices by pseudonyms only.',
    switchOff: [
      {
        file: `${traces}/report.ts`,
        find: 'if (pseudonymous.has(name) && !/^[0-9a-f]{16}$/.test(String(value)))',
        replace: 'if (name === "")',
      },
    ],
    test: {
      file: 'packages/cli/test/trace.test.ts',
      name: 'tells of users and devices pseudonyms only, and nothing that is not registered',
    },
  },
  {
    name: 'credentials-stay-with-their-backend',
    invariant: 'I10',
    what: 'Headers for a backend of traces do not follow a redirect.',
    switchOff: [{ file: `${traces}/backend.ts`, find: "redirect: 'manual',", replace: "redirect: 'follow'," }],
    test: {
      file: 'packages/traces/test/backend.test.ts',
      name: 'headers go along, below the path that was given, to that host alone',
    },
  },
];
