import type { Guard } from './guard.ts';

const parts = 'packages/telemetry/src/local-parts.ts';
const redaction = 'packages/telemetry/src/redaction.ts';
const keeping = 'packages/telemetry/test/keeping.test.ts';
const lines = 'packages/telemetry/test/log.test.ts';

/** I10: what is kept of a miss, what is told of what was lost, and what never leaves a process. */
export const keptTelemetry: readonly Guard[] = [
  {
    name: 'a-miss-keeps-what-was-before-it',
    invariant: 'I10',
    what: 'With nothing sampled a miss leaves its whole local part, what ended before it was found included.',
    switchOff: [
      {
        file: parts,
        find: 'for (const span of this.#release(part)) this.#queue.add(span);',
        replace: 'this.#release(part);',
      },
    ],
    test: {
      file: keeping,
      name: 'a miss leaves its whole local part, what ended before it was found included',
    },
  },
  {
    name: 'errors-are-kept',
    invariant: 'I10',
    what: 'With nothing sampled an error of the server leaves its trace.',
    switchOff: [{ file: parts, find: 'if (span.status.code === SpanStatusCode.ERROR) return true;', replace: '' }],
    test: { file: keeping, name: 'an error of the server is kept, with what was thrown' },
  },
  {
    name: 'a-miss-is-sampled-from-then-on',
    invariant: 'I10',
    what: 'Calls to peers carry the sampled flag from the discovery of a miss on: their parts of the trace are kept too.',
    switchOff: [
      {
        file: 'packages/telemetry/src/recorded-span.ts',
        find: 'return this.part.exported ? 1 : 0;',
        replace: 'return this.part.exported ? 0 : 0;',
      },
    ],
    test: { file: keeping, name: 'is set on calls from the discovery of a miss on' },
  },
  {
    name: 'lost-spans-are-counted',
    invariant: 'I10',
    what: 'What a process says it lost is what waited for a root and what waited for the receiver, together.',
    switchOff: [
      {
        file: 'packages/telemetry/src/telemetry.ts',
        find: 'overflowed: queue.overflowed + parts.overflowed,',
        replace: 'overflowed: queue.overflowed,',
      },
    ],
    test: {
      file: 'packages/telemetry/test/arrivals.test.ts',
      name: 'what a process says it lost of its spans is what had no room for want of a root, and of a receiver',
    },
  },
  {
    name: 'bench-refuses-rows-of-lost-spans',
    invariant: 'I10',
    what: 'The cost of telemetry is not told of rounds in which spans were lost: dropping one is cheaper than sending it.',
    switchOff: [
      {
        file: 'test/bench/telemetry-verdict.ts',
        find: 'if (lost > 0) return',
        replace: 'if (lost < 0) return',
      },
    ],
    test: {
      file: 'test/bench/telemetry-verdict.test.ts',
      name: 'a row is refused when a span of it was lost in any round, and the other one is not',
    },
  },
  {
    name: 'logs-have-no-secrets',
    invariant: 'I10',
    what: 'Credentials and keys reach no line of a log, wherever they stand.',
    switchOff: [{ file: redaction, find: "if (secretName.test(name)) return '[redacted]';", replace: '' }],
    test: { file: lines, name: 'credentials and keys never reach a line, wherever they stand' },
  },
  {
    name: 'logs-have-pseudonyms',
    invariant: 'I10',
    what: 'A log tells users and devices by pseudonym.',
    switchOff: [
      {
        file: redaction,
        find: 'return identityName.test(name) ? pseudonym(value) : redactText(value);',
        replace: "return identityName.test(name) && value === '' ? pseudonym(value) : redactText(value);",
      },
    ],
    test: { file: lines, name: 'users and devices are told by pseudonym, numbers stay' },
  },
  {
    name: 'database-errors-quote-no-rows',
    invariant: 'I10',
    what: 'Of an error of PostgreSQL, which may quote a row, only names and codes reach a span, a log or who catches it.',
    switchOff: [
      {
        file: redaction,
        find: 'const message = known ?? redactText(thrown.message);',
        replace: 'const message = redactText(thrown.message);',
      },
    ],
    test: {
      file: 'packages/storage/test/statements.test.ts',
      name: 'a value in an error of PostgreSQL reaches no span and no log line, and not who catches the error',
    },
  },
];
