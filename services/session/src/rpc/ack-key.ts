import { SessionService } from '@keytrail/contracts';
import { deviceCaller, type Rpc, unary } from '@keytrail/rpc';
import { keepTrace } from '@keytrail/telemetry';
import type { Parts } from '../parts.ts';
import { notFoundOrNotPermitted } from '../refusals.ts';
import { markEnvelopeOpened } from '../store/envelopes.ts';

/** Notes when the calling device first opened the envelope of an attempt. */
export function ackKey({ db }: Pick<Parts, 'db'>): Rpc {
  return unary(SessionService.method.ackKey, {
    allow: ['device'],
    async handle(request, call) {
      if (request.attempt > 0) keepTrace('key opened');
      if (!(await markEnvelopeOpened(db, request, deviceCaller(call)))) throw notFoundOrNotPermitted();
      return {};
    },
  });
}
