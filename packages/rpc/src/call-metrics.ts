import { type Attributes, attr, measure } from '@keytrail/telemetry';
import { codeName } from './codes.ts';

export interface CallMeasure {
  record(code: number, startedAt: number): void;
}

/** Measures how long the calls of one method take, by status code. `rpc.server.call.duration` or `rpc.client.call.duration`. */
export function createCallMeasure(side: 'server' | 'client', attributes: Attributes): CallMeasure {
  const histogram = side === 'server' ? 'serverCalls' : 'clientCalls';
  const byCode = new Map<number, Attributes>();
  return {
    record(code, startedAt) {
      let withCode = byCode.get(code);
      if (withCode === undefined) {
        withCode = { ...attributes, [attr.rpcStatusCode]: codeName(code) };
        byCode.set(code, withCode);
      }
      measure(histogram, (performance.now() - startedAt) / 1000, withCode as object);
    },
  };
}
