import { Code } from '@connectrpc/connect';
import { helpUrl, type MissCauseName, type ReasonName } from '@keytrail/contracts';
import { readRefusal } from '@keytrail/rpc';

/** Whom a call went to. */
export interface Callee {
  readonly service: string;
  /** The target, or one address of it. */
  readonly target: string;
  /** Where the target was said: `--session or KEYTRAIL_SESSION_TARGET`. */
  readonly saidBy: string;
}

/** What the transport says of a failure names addresses at most, never whose they are. */
const callees = new WeakMap<Error, Callee>();

/** Lets describeFailure name whom the call went to. Returns the error. */
export function noteCallee<E extends Error>(error: E, callee: Callee): E {
  callees.set(error, callee);
  return error;
}

/** The page about a refusal, below the root of the documentation. */
export function reasonPage(reason: string): string {
  return helpUrl(reason as ReasonName | MissCauseName);
}

/**
 * A failed call in words, whether anything answered at all, and the reason that it gave, '' for none. `why`: its first line, without whom it went
 * to and what to look at.
 */
export function describeFailure(error: unknown): {
  readonly answered: boolean;
  readonly reason: string;
  readonly why: string;
  readonly text: string;
} {
  const { code, reason, message, metadata, traceId } = readRefusal(error);
  const callee = error instanceof Error ? callees.get(error) : undefined;
  const at = callee ? `${callee.service} at ${callee.target}: ` : '';
  if (reason === '' && code === Code.Unavailable) {
    const check = callee ? `; is it up, and is ${callee.saidBy} right?` : '';
    const why = whyUnavailable(message);
    return { answered: false, reason, why, text: `${at}${why}${check}` };
  }
  const answered = reason !== 'DEADLINE_EXCEEDED';
  const facts = Object.entries(metadata).map(([name, value]) => `${name}=${value}`);
  const told = `${reason || 'failed'}: ${message}${facts.length > 0 ? ` (${facts.join(', ')})` : ''}`;
  const lines = [
    answered ? told : `${at}${told}`,
    // The method is in the contract of that service: only another one, or an older build, does not have it.
    ...(callee && code === Code.Unimplemented
      ? [`what answers at ${callee.target} is not ${callee.service}, or an older build of it: see ${callee.saidBy}`]
      : []),
    ...(traceId ? [`trace id ${traceId}`] : []),
    ...(reason ? [`page ${reasonPage(reason)}`] : []),
  ];
  return { answered, reason, why: told.split('\n')[0] ?? '', text: lines.join('\n') };
}

function whyUnavailable(message: string): string {
  const [refused] = /\bE[A-Z]{4,}\b(?: [^\s,]*[^\s,.])?/.exec(message) ?? [];
  if (refused) return `no connection (${refused})`;
  if (/^(Name resolution failed|Failed to parse)/.test(message)) return 'its name cannot be resolved';
  if (message.includes('Protocol error')) return 'what listens there does not speak gRPC';
  return message.includes('No connection established') ? 'no connection' : message;
}
