import { type Attributes, attr, type Histogram, meter } from '@keytrail/telemetry';
import { codeName } from './codes.ts';

/** Seconds. */
const buckets = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10];

export interface CallMeasure {
  record(code: number, startedAt: number): void;
}

/** Measures how long the calls of one method take, by status code. `rpc.server.call.duration` or `rpc.client.call.duration`. */
export function createCallMeasure(side: 'server' | 'client', attributes: Attributes): CallMeasure {
  let histogram: Histogram | undefined;
  const byCode = new Map<number, Attributes>();
  return {
    record(code, startedAt) {
      let withCode = byCode.get(code);
      if (withCode === undefined) {
        withCode = { ...attributes, [attr.rpcStatusCode]: codeName(code) };
        byCode.set(code, withCode);
      }
      histogram ??= meter().createHistogram(`rpc.${side}.call.duration`, {
        unit: 's',
        description: `Duration of the calls that this process ${side === 'server' ? 'answered' : 'made'}`,
        advice: { explicitBucketBoundaries: buckets },
      });
      histogram.record((performance.now() - startedAt) / 1000, withCode);
    },
  };
}
