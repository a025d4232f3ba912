import { awaitTrace, type TraceSpan } from '@keytrail/traces';
import { reasonPage } from '../failure.ts';
import { firstNamed, isMiss, namedMisses, refusedWith } from './named-misses.ts';
import type { TraceSource } from './source.ts';

/** What to explain: of the device the ids, or the pseudonyms that traces show. */
export interface AskedKey {
  readonly conversationId: string;
  /** Empty for that of the current epoch. */
  readonly sessionId: string;
  readonly userId?: string;
  readonly deviceId?: string;
  readonly userPseudonym?: string;
  readonly devicePseudonym?: string;
}

/** What was given beside the trace: it goes before what the trace says. */
export interface Given {
  readonly conversation?: string;
  readonly session?: string;
  readonly device?: { readonly userId: string; readonly deviceId: string };
}

/** The trace names nothing that could be explained. */
export class NothingToExplain extends Error {}

/**
 * The first miss of a trace, of those that fit what was given, and how many more there are. Waits up to `waitMs` for its spans; `waits` is called when
 * there is none yet. Throws NothingToExplain and TraceNotFound.
 */
export async function askedByTrace(
  traceId: string,
  given: Given,
  source: TraceSource,
  waitMs: number,
  waits: () => void,
): Promise<{ readonly asked: AskedKey; readonly more: number }> {
  const timeoutMs = source.grows ? waitMs : 0;
  let looked = false;
  const read = async () => {
    const some = await source.read(traceId);
    if (!looked && some.length === 0 && timeoutMs > 0) waits();
    looked = true;
    return some;
  };
  const { spans } = await awaitTrace(read, traceId, {
    timeoutMs,
    pollMs: 250,
    until: ({ spans }) =>
      refusedWith(spans) !== undefined || (spans.some(isMiss) && missingOf(ask(spans, given).asked) === undefined),
  });
  const found = ask(spans, given);
  const missing = missingOf(found.asked);
  const refused = refusedWith(spans);
  if (missing && refused)
    throw new NothingToExplain(
      `trace ${traceId} holds no miss: ${refused.name} was refused with ${refused.reason}, see ${reasonPage(refused.reason)} and keytrail trace ${traceId}`,
    );
  if (missing) throw new NothingToExplain(`trace ${traceId} names no ${missing}: give --${missing}`);
  return found;
}

function ask(spans: readonly TraceSpan[], { conversation, session, device }: Given): { asked: AskedKey; more: number } {
  const fitting = namedMisses(spans).filter(
    (miss) =>
      miss.conversationId === (conversation ?? miss.conversationId) && miss.sessionId === (session ?? miss.sessionId),
  );
  const { userPseudonym, devicePseudonym, ...names } = fitting[0] ?? firstNamed(spans);
  return {
    asked: {
      conversationId: conversation ?? names.conversationId,
      sessionId: session ?? names.sessionId,
      ...(device ?? { userPseudonym, devicePseudonym }),
    },
    more: Math.max(0, fitting.length - 1),
  };
}

function missingOf({ conversationId, userId, userPseudonym, devicePseudonym }: AskedKey): string | undefined {
  if (conversationId === '') return 'conversation';
  return userId || (userPseudonym && devicePseudonym) ? undefined : 'device';
}
