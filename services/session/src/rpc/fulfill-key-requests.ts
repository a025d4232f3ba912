import { create } from '@bufbuild/protobuf';
import { ConnectError } from '@connectrpc/connect';
import { FulfillKeyRequestsResponseSchema, type KeyFulfilment, SessionService } from '@keytrail/contracts';
import { type AskedRequest, answerOnce, askedRequest, earlierAnswer } from '@keytrail/idempotency';
import { type Call, deviceCaller, invalidField, type Rpc, unary } from '@keytrail/rpc';
import { attr, keepTrace, trace } from '@keytrail/telemetry';
import {
  acceptEnvelopes,
  type CheckedEnvelope,
  checkEnvelopes,
  type SentEnvelope,
  tellFulfilled,
} from '../accept-fulfilments.ts';
import { type DeviceId, deviceKey } from '../domain/device.ts';
import type { KeyRequest } from '../domain/key-request.ts';
import type { Parts } from '../parts.ts';
import { isOfErasedUser } from '../store/erasures.ts';
import { keyRequestMessage, refusedKey } from './messages.ts';

/** Accepts many re-sealed envelopes at once: peers are asked once, and all that may be are written by one statement. */
export function fulfillKeyRequests(parts: Parts): Rpc {
  const { db } = parts;
  return unary(SessionService.method.fulfillKeyRequests, {
    allow: ['device'],
    async handle(request, call) {
      keepTrace('keys delivered');
      const holder = deviceCaller(call);
      const sent = sentEnvelopes(request.fulfilments);
      const once = askedRequest(SessionService.method.fulfillKeyRequests, request, deviceKey(holder));
      let checked: readonly (CheckedEnvelope | ConnectError)[];
      try {
        checked = await checkEnvelopes(parts, sent, holder, call);
      } catch (refusal) {
        if (!(refusal instanceof ConnectError)) throw refusal;
        const earlier = await earlierAnswer(db, once);
        if (earlier) return earlier;
        throw refusal;
      }
      const accept = () => acceptAll(parts, once, checked, holder, call);
      // An erasure that was noted while the envelopes were written refuses them all; on the second look it is known whose it is.
      return accept().catch((error: unknown) => {
        if (!isOfErasedUser(error)) throw error;
        return accept();
      });
    },
  });
}

async function acceptAll(
  { db, writerBuild }: Parts,
  once: AskedRequest<typeof FulfillKeyRequestsResponseSchema>,
  checked: readonly (CheckedEnvelope | ConnectError)[],
  holder: DeviceId,
  call: Call,
) {
  const { response } = await answerOnce(db, once, async (tx) => {
    const good = checked.flatMap((result) => (result instanceof ConnectError ? [] : [result]));
    const accepted = good.length === 0 ? [] : await acceptEnvelopes(tx, good, { holder, writerBuild });
    const results = new Map(good.map((each, place) => [each, accepted[place]]));
    tx.afterCommit(() => tell(accepted, call));
    return create(FulfillKeyRequestsResponseSchema, {
      results: checked.map((each) => resultOf(each instanceof ConnectError ? each : results.get(each))),
    });
  });
  return response;
}

function resultOf(result: KeyRequest | ConnectError | undefined) {
  if (!result) throw new Error('an envelope without a result');
  return result instanceof ConnectError ? { refused: refusedKey(result) } : { keyRequest: keyRequestMessage(result) };
}

function sentEnvelopes(fulfilments: readonly KeyFulfilment[]): SentEnvelope[] {
  const requests = new Set<string>();
  return fulfilments.map(({ keyRequestId, attempt, envelope }, place) => {
    const path = `fulfilments[${place}]`;
    if (!envelope) throw new Error('the contract requires an envelope');
    const id = keyRequestId.toLowerCase();
    if (requests.has(id)) throw invalidField(`${path}.key_request_id`, 'must be another one than those before');
    requests.add(id);
    return { keyRequestId: id, attempt, envelope, path: `${path}.envelope` };
  });
}

function tell(results: readonly (KeyRequest | ConnectError)[], call: Call): void {
  for (const result of results) if (!(result instanceof ConnectError)) tellFulfilled(result, call);
  trace.getActiveSpan()?.setAttribute(attr.keyRequestsCount, results.length);
}
