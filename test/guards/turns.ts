import { createHash } from 'node:crypto';
import { readRevision } from '@keytrail/telemetry';

/** In an order of the revision's own: where there is no time for all, each comes first at some revision. */
export function inTurns<T extends { readonly name: string }>(guards: readonly T[], revision: string): T[] {
  const place = ({ name }: T) => createHash('sha256').update(`${revision} ${name}`).digest('hex');
  return guards
    .map((guard) => ({ guard, at: place(guard) }))
    .sort((a, b) => (a.at < b.at ? -1 : 1))
    .map(({ guard }) => guard);
}

/** What the order is made from; where there is no revision, the day. */
export function turnOf(checkout: string, now = new Date()): string {
  const revision = readRevision(checkout);
  return revision === 'unknown' ? now.toISOString().slice(0, 10) : revision;
}
