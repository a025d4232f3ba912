import { awaitTrace, TraceNotFound } from '@keytrail/traces';
import type { Session } from '../terminal.ts';
import { openSource } from '../trace/source.ts';
import type { Place } from './finding.ts';

/** How long a trace may be on its way from the receiver to where it is read. */
const longestMs = 5_000;

/**
 * TELEMETRY further on: looks for the trace that each process has just sent where operators read traces (KEYTRAIL_TRACE_BACKEND). Without one, what the
 * processes say stands.
 */
export async function lookForTraces(places: readonly Place[], session: Session): Promise<Place[]> {
  const { environment, options } = session;
  if (!environment.KEYTRAIL_TRACE_BACKEND) return [...places];
  const source = await openSource({}, environment, options.timeout);
  return Promise.all(
    places.map(async (place) => {
      const traceId = place.evidence?.traceId;
      if (place.status !== 'ok' || !traceId) return place;
      const from = performance.now();
      try {
        const id = String(traceId);
        await awaitTrace(() => source.read(id), id, { timeoutMs: longestMs, pollMs: 100, until: () => true });
        return { ...place, summary: `a trace that was just made is at ${source.name}` };
      } catch (error) {
        return {
          ...place,
          status: 'warn',
          summary:
            error instanceof TraceNotFound
              ? `the receiver took a trace that was just made, and ${source.name} does not have it`
              : `whether traces get to ${source.name} is not known: ${(error as Error).message}`,
          hint: 'look at what is between the receiver and the backend (deploy/otel), and whether KEYTRAIL_TRACE_BACKEND names the right one',
          durationMs: performance.now() - from,
        } as const;
      }
    }),
  );
}
