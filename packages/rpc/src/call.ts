import { AsyncLocalStorage } from 'node:async_hooks';
import type { Caller, DeviceCaller, Wire } from '@keytrail/auth';
import type { Telemetry } from '@keytrail/telemetry';
import { refuse } from './refusal.ts';

/** What a handler knows about the call that it answers. */
export interface Call {
  /** In full: `keytrail.session.v1.SessionService/GetInitialSession`. */
  readonly method: string;
  readonly caller: Caller;
  /** Aborts when the deadline passes, the caller gives up, or the drain of a stopping server runs out. */
  readonly signal: AbortSignal;
  /** Aborts when the server begins to stop: a stream then says good-bye and ends. */
  readonly draining: AbortSignal;
  /** In ms since the epoch; Infinity for a stream without a deadline. */
  readonly deadlineAt: number;
  /** 32 hexadecimal digits. */
  readonly traceId: string;
  readonly log: Telemetry['log'];
  readonly wire: Wire;
}

export const calls = new AsyncLocalStorage<Call & { readonly answered: boolean }>();

/** The call that is being answered, if any. What a handler left running after its answer is nobody's call any more. */
export function currentCall(): Call | undefined {
  const call = calls.getStore();
  return call?.answered === false ? call : undefined;
}

/**
 * Runs `work` so that the calls it makes have at most this share (0 to 1) of the time that is left to the call being answered: one that nobody answers
 * then leaves time to say so.
 */
export function withShareOfTime<T>(share: number, work: () => T): T {
  const current = calls.getStore();
  if (current === undefined || current.answered || !Number.isFinite(current.deadlineAt)) return work();
  const now = Date.now();
  const { method, caller, draining, traceId, log, wire } = current;
  const bounded = {
    ...{ method, caller, draining, traceId, log, wire },
    deadlineAt: now + Math.max(0, current.deadlineAt - now) * share,
    get signal() {
      return current.signal;
    },
    get answered() {
      return current.answered;
    },
  };
  return calls.run(bounded, work);
}

/** The calling device. Throws CALLER_NOT_ALLOWED when the caller is a service or an operator. */
export function deviceCaller(call: Call): DeviceCaller {
  if (call.caller.kind === 'device') return call.caller;
  throw refuse('CALLER_NOT_ALLOWED', 'this method is for devices', {
    metadata: { method: call.method, caller: call.caller.kind },
  });
}
