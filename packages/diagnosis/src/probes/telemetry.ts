import { setTimeout as pause } from 'node:timers/promises';
import {
  currentTraceId,
  keepTrace,
  ROOT_CONTEXT,
  SpanKind,
  type Telemetry,
  type TelemetryArrivals,
  withSpan,
} from '@keytrail/telemetry';
import type { Outcome, Probe } from '../check.ts';

const hint =
  'the receiver at KEYTRAIL_OTLP_URL refuses or does not answer: start it, or look at the network; what was lost stays lost';

const noRoom =
  'more spans are made at once than this process keeps or sends: lower KEYTRAIL_TRACE_RATIO; keytrail_telemetry_spans says whether they waited for their root (buffer_full) or for the receiver (queue_full)';

/** For a receiver that is there and slow; one that is away is tried for longer than a check may take. */
const patienceMs = 2_500;

/** That spans and metrics get out: makes a trace of its own and sends it. */
export function probeTelemetry(telemetry: Telemetry): Probe {
  return {
    code: 'TELEMETRY',
    async run() {
      const before = telemetry.arrivals();
      if (!before.exporting) return judgeTelemetry(before, before);
      const traceId = await withSpan('check telemetry', { kind: SpanKind.INTERNAL, parent: ROOT_CONTEXT }, async () => {
        keepTrace('telemetry checked');
        return currentTraceId();
      });
      await Promise.race([telemetry.flush(), pause(patienceMs, undefined, { ref: false })]);
      const outcome = judgeTelemetry(before, telemetry.arrivals());
      return { ...outcome, evidence: { ...outcome.evidence, traceId } };
    },
  };
}

export function judgeTelemetry(before: TelemetryArrivals, { exporting, spans, metrics }: TelemetryArrivals): Outcome {
  if (!exporting)
    return {
      status: 'warn',
      summary: 'traces and metrics go nowhere',
      hint: 'set KEYTRAIL_OTLP_URL: without traces a miss can be explained, and not followed',
    };
  const evidence = {
    spansTaken: spans.exported,
    spansLost: spans.failed + spans.overflowed,
    ...(spans.lastTakenAt && { spansLastTakenAt: spans.lastTakenAt.toISOString() }),
    ...(metrics.lastTakenAt && { metricsLastTakenAt: metrics.lastTakenAt.toISOString() }),
  };
  if (spans.failed > before.spans.failed)
    return { status: 'fail', summary: 'the receiver did not take a span that was just made', evidence, hint };
  if (isFailing(metrics)) return { status: 'fail', summary: 'the receiver does not take metrics', evidence, hint };
  if (spans.exported === before.spans.exported)
    return {
      status: 'fail',
      summary: `the receiver did not take a span that was just made within ${patienceMs} ms`,
      evidence,
      hint,
    };
  if (spans.overflowed > before.spans.overflowed)
    return { status: 'warn', summary: 'spans are lost, as there is no room for them', evidence, hint: noRoom };
  return { status: 'ok', summary: `a span that was just made was taken, ${spans.exported} in all`, evidence };
}

function isFailing({ lastTakenAt, lastFailedAt }: TelemetryArrivals['metrics']): boolean {
  return lastFailedAt !== undefined && (lastTakenAt === undefined || lastFailedAt > lastTakenAt);
}
