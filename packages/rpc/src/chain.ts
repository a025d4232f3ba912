import type { Caller } from '@keytrail/auth';
import { context } from '@keytrail/telemetry';
import { calls } from './call.ts';
import { refuse } from './refusal.ts';
import type { ServerCall } from './server-call.ts';
import { validate } from './validation.ts';

/**
 * Answers a call: telemetry (the call's own span and context), deadline, authentication, authorisation, validation, limits,
 * then the handler, and error mapping around all of it. The one chain of both wires; never throws.
 */
export function answer(call: ServerCall): void {
  calls.run(call, inContext, call);
}

function inContext(call: ServerCall): void {
  void context.with(call.context, answerInContext, undefined, call);
}

async function answerInContext(call: ServerCall): Promise<void> {
  try {
    const { rpc } = call.endpoint;
    if (rpc === undefined) throw refuse('METHOD_UNKNOWN', 'there is no such method on this port');
    call.startDeadline();

    const caller = identify(call);
    call.identified(caller instanceof Promise ? await caller : caller);
    if (!call.endpoint.allows(call.caller)) throw notAllowed(call);
    const { closed } = call.endpoint.parts.gate;
    if (closed !== undefined && rpc.whileClosed !== true) throw closed;

    const reading = call.read();
    const request = reading instanceof Promise ? await reading : reading;
    validate(rpc.method.input, request);
    if (call.answered) return;
    call.enterLimits();

    if (rpc.kind === 'unary') {
      const message = await rpc.handle(request as never, call);
      if (!call.answered) void call.send(message);
    } else {
      for await (const message of rpc.handle(request as never, call)) {
        if (call.answered) break;
        const sent = call.send(message);
        if (sent !== undefined) await sent;
      }
    }
    call.succeed();
  } catch (error) {
    call.fail(error);
  }
}

function identify(call: ServerCall): Caller | Promise<Caller> {
  const { endpoint, arrival } = call;
  if (arrival.authorization === undefined && endpoint.allows(call.caller)) return call.caller;
  return endpoint.parts.authenticator.authenticate(arrival.authorization, arrival.wire);
}

function notAllowed(call: ServerCall): Error {
  const { kind } = call.caller;
  return refuse(
    'CALLER_NOT_ALLOWED',
    `this method is not for ${kind === 'service' ? 'this service' : `a caller of this kind`}`,
    {
      metadata: { method: call.method, caller: call.caller.kind === 'service' ? call.caller.service : kind },
    },
  );
}
