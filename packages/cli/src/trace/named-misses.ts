import { attr } from '@keytrail/telemetry';
import type { TraceSpan } from '@keytrail/traces';

/** Whom a trace is about. Empty where it does not say. */
export interface NamedMiss {
  readonly conversationId: string;
  readonly sessionId: string;
  readonly userPseudonym: string;
  readonly devicePseudonym: string;
}

/** Whether a span says so of its call. */
export function isMiss({ attributes }: TraceSpan): boolean {
  return attributes[attr.miss] === true;
}

/** What the first call of a trace without a miss was refused with. */
export function refusedWith(
  spans: readonly TraceSpan[],
): { readonly name: string; readonly reason: string } | undefined {
  if (spans.some(isMiss)) return undefined;
  const [first] = spans.filter(({ kind }) => kind === 'server').sort((a, b) => a.startMs - b.startMs);
  const reason = first?.attributes[attr.reason];
  return first && typeof reason === 'string' && reason !== '' ? { name: first.name, reason } : undefined;
}

/**
 * The misses that a trace names in full, earliest first, each once. All ids of one are of the span that answered with it: an application that reads several
 * sessions in one trace misses several.
 */
export function namedMisses(spans: readonly TraceSpan[]): NamedMiss[] {
  const found = spans
    .filter(isMiss)
    .sort((a, b) => a.startMs - b.startMs)
    .map(idsOf)
    .filter((ids) => ids.conversationId && ids.sessionId && ids.userPseudonym && ids.devicePseudonym);
  return [...new Map(found.map((ids) => [Object.values(ids).join(' '), ids])).values()];
}

/** Where no span names a miss in full: each id of the earliest span that has it, those that missed first. Later hops are about those who help. */
export function firstNamed(spans: readonly TraceSpan[]): NamedMiss {
  const inTime = spans
    .toSorted((a, b) => Number(isMiss(b)) - Number(isMiss(a)) || a.startMs - b.startMs)
    .map((span) => idsOf(span));
  const first = (name: keyof NamedMiss) => inTime.map((ids) => ids[name]).find((id) => id !== '') ?? '';
  return {
    conversationId: first('conversationId'),
    sessionId: first('sessionId'),
    userPseudonym: first('userPseudonym'),
    devicePseudonym: first('devicePseudonym'),
  };
}

function idsOf({ attributes }: TraceSpan): NamedMiss {
  const told = (name: string) => (typeof attributes[name] === 'string' ? attributes[name] : '');
  return {
    conversationId: told(attr.conversationId),
    sessionId: told(attr.sessionId),
    userPseudonym: told(attr.user),
    devicePseudonym: told(attr.device),
  };
}
