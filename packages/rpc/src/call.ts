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

/** The calling device. Throws CALLER_NOT_ALLOWED when the caller is a service or an operator. */
export function deviceCaller(call: Call): DeviceCaller {
  if (call.caller.kind === 'device') return call.caller;
  throw refuse('CALLER_NOT_ALLOWED', 'this method is for devices', {
    metadata: { method: call.method, caller: call.caller.kind },
  });
}
