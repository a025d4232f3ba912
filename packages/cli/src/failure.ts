import { readRefusal } from '@keytrail/rpc';

/** A failed call in words, and whether anything answered at all. */
export function describeFailure(error: unknown): { readonly answered: boolean; readonly text: string } {
  const { code, reason, message, metadata, traceId } = readRefusal(error);
  const unavailable = 14;
  const answered = reason !== 'DEADLINE_EXCEEDED' && !(reason === '' && code === unavailable);
  const facts = Object.entries(metadata).map(([name, value]) => `${name}=${value}`);
  const told = `${reason || 'failed'}: ${message}${facts.length > 0 ? ` (${facts.join(', ')})` : ''}`;
  return { answered, text: traceId ? `${told}\ntrace id ${traceId}` : told };
}
