import type { EventBus, TopologyDifference } from '@keytrail/events';
import type { Outcome, Probe } from '../check.ts';

/** For how long it is told that something was lost and made anew. */
export const mendedToldMs = 10 * 60_000;

/** That streams and consumers are as in this build's catalogue; looks, and changes nothing. */
export function probeStreams(bus: EventBus): Probe {
  return {
    code: 'STREAMS',
    async run() {
      if (!bus.isConnected())
        return { status: 'unknown', summary: 'NATS is away: its streams cannot be looked at', hint: 'see NATS' };
      return judgeStreams(await bus.differences(), bus.lastMended(), new Date());
    },
  };
}

export function judgeStreams(
  differences: readonly TopologyDifference[],
  mended: { readonly at: Date; readonly what: readonly string[] } | undefined,
  now: Date,
): Outcome {
  const missing = differences.filter((difference) => difference.missing);
  const told = differences.map(({ subject, what }) => `${subject}: ${what || 'is missing'}`);
  const evidence = Object.fromEntries(told.slice(0, 8).map((text, place) => [`difference${place + 1}`, text]));
  if (missing.length > 0)
    return {
      status: 'fail',
      summary: `${missing.length} of streams and consumers are missing: ${missing[0]?.subject}`,
      evidence,
      hint: 'restart a service that uses it: it makes what is missing; events that were in a lost stream are made up for by the sweeps',
    };
  if (differences.length > 0)
    return {
      status: 'fail',
      summary: `NATS differs from the catalogue: ${told[0]}`,
      evidence,
      hint: 'restart a service: it mends what can be mended; settings that differ (KEYTRAIL_NATS_*) must be the same in the whole fleet',
    };
  const agoMs = mended ? now.getTime() - mended.at.getTime() : Number.POSITIVE_INFINITY;
  if (mended && agoMs < mendedToldMs)
    return {
      status: 'warn',
      summary: `lost and made anew ${Math.round(agoMs / 1000)} s ago: ${mended.what[0]}${mended.what.length > 1 ? `, and ${mended.what.length - 1} more` : ''}`,
      evidence: { mendedAt: mended.at.toISOString() },
      hint: 'find out who deleted it; events in it that nobody had taken are gone, and the sweeps make up for them',
    };
  return { status: 'ok', summary: 'streams and consumers are as in the catalogue' };
}
