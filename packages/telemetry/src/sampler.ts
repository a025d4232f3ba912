import type { Context } from '@opentelemetry/api';
import { TraceFlags, trace } from '@opentelemetry/api';
import type { Sampler, SamplingResult } from '@opentelemetry/sdk-trace';
import { SamplingDecision } from '@opentelemetry/sdk-trace';
import { localPartOf } from './local-parts.ts';

const sampled: SamplingResult = { decision: SamplingDecision.RECORD_AND_SAMPLED };
const recorded: SamplingResult = { decision: SamplingDecision.RECORD };

/** Records every span; the sampled flag follows the local part, else the caller's flag, else the trace id and the ratio. */
export class RecordAllSampler implements Sampler {
  readonly #below: number;

  constructor(ratio: number) {
    this.#below = Math.round(ratio * 2 ** 32);
  }

  shouldSample(parent: Context, traceId: string): SamplingResult {
    const span = trace.getSpan(parent);
    const part = localPartOf(span);
    if (part !== undefined) return part.exported ? sampled : recorded;
    const caller = span?.spanContext();
    if (caller !== undefined && caller.traceId === traceId)
      return (caller.traceFlags & TraceFlags.SAMPLED) !== 0 ? sampled : recorded;
    return this.draws(traceId) ? sampled : recorded;
  }

  /** The verdict of the ratio on a trace id: the same in every process. */
  draws(traceId: string): boolean {
    return Number.parseInt(traceId.slice(24), 16) < this.#below;
  }

  toString(): string {
    return 'RecordAll';
  }
}
