import type { Guard } from './guard.ts';

const hops = 'packages/traces/src/expected-hops.ts';
const memory = 'packages/traces/src/memory.ts';
const keptThere = 'packages/traces/test/memory.test.ts';
const trace = 'packages/cli/test/trace.test.ts';

/** I10: what keytrail trace says of a trace that is not whole. */
export const toldTraces: readonly Guard[] = [
  {
    name: 'dropped-spans-make-a-trace-not-whole',
    invariant: 'I10',
    what: 'A trace of which the store dropped spans is not called whole, though no hop seems to be missing.',
    switchOff: [
      {
        file: 'packages/traces/src/report.ts',
        find: 'whole: dropped === 0 && !missing',
        replace: 'whole: !missing',
      },
    ],
    test: { file: trace, name: 'says what the store dropped of a trace, beyond its bounds, and calls that not whole' },
  },
  {
    name: 'a-part-of-a-trace-is-not-whole',
    invariant: 'I10',
    what: 'What Tempo says is a part of a trace is not called whole, though no hop seems to be missing.',
    switchOff: [
      { file: 'packages/traces/src/loss.ts', find: "partial: status === 'PARTIAL'", replace: 'partial: false' },
    ],
    test: {
      file: trace,
      name: 'does not call whole what Tempo says is a part of a trace, nor what the store says in a file that it dropped',
    },
  },
  {
    name: 'dropped-spans-are-counted',
    invariant: 'I10',
    what: 'The local store counts the spans of a trace that its bounds keep out.',
    switchOff: [{ file: memory, find: 'trace.dropped += 1;', replace: '' }],
    test: {
      file: keptThere,
      name: 'bytes are bounded over all traces, in each, and of each span; what is left out is counted',
    },
  },
  {
    name: 'misses-leave-room',
    invariant: 'I10',
    what: 'A flood of misses does not push the write out of the local store that the next of them points to.',
    switchOff: [{ file: memory, find: 'const evidenceShare = 0.75;', replace: 'const evidenceShare = 75;' }],
    test: { file: keptThere, name: 'a flood of misses leaves room for the write that comes after it' },
  },
  {
    name: 'missing-hops-have-their-exit-code',
    invariant: 'I10',
    what: 'keytrail trace ends with 4 when a hop that must have been is missing.',
    switchOff: [
      {
        file: 'packages/cli/src/commands/trace.ts',
        find: 'return report.whole ? exitCodes.ok : exitCodes.incomplete;',
        replace: 'return exitCodes.ok;',
      },
    ],
    test: { file: trace, name: 'points out the service and the operation that are missing, says why, and ends with 4' },
  },
  {
    name: 'unpublished-events-are-named',
    invariant: 'I10',
    what: 'What was written to the outbox and has no publication in the trace is a missing hop.',
    switchOff: [
      { file: hops, find: 'if (!wrote || undone || children', replace: 'if (!wrote || wrote || undone || children' },
    ],
    test: {
      file: 'packages/traces/test/expected-hops.test.ts',
      name: 'what was written to the outbox and never published is pointed out, a rolled-back write is not',
    },
  },
  {
    name: 'unexplained-misses-are-named',
    invariant: 'I10',
    what: 'A miss whose answer asked nobody is pointed out: the trace does not show why it was told.',
    switchOff: [
      {
        file: hops,
        find: '.filter(({ operation, certain }) => !asked.has(operation) && (certain || span.links.length > 0))',
        replace: '.filter(({ operation, certain }) => asked.has(operation) && (certain || span.links.length > 0))',
      },
    ],
    test: {
      file: 'packages/traces/test/expected-hops.test.ts',
      name: 'a miss whose answer asked nobody is pointed out, except for presence, whom it may rightly not ask',
    },
  },
];
