import { create } from '@bufbuild/protobuf';
import { ConnectError } from '@connectrpc/connect';
import { FulfillKeyRequestResponseSchema, MissCause, SessionService } from '@keytrail/contracts';
import { answerOnce, askedRequest, earlierAnswer } from '@keytrail/idempotency';
import { type Call, deviceCaller, type Rpc, unary } from '@keytrail/rpc';
import { keepTrace } from '@keytrail/telemetry';
import {
  acceptEnvelopes,
  type CheckedEnvelope,
  checkEnvelopes,
  type SentEnvelope,
  tellFulfilled,
} from '../accept-fulfilments.ts';
import { type DeviceId, deviceKey } from '../domain/device.ts';
import type { Parts } from '../parts.ts';
import { notEntitled } from '../refusals.ts';
import { erasedAmong, isOfErasedUser } from '../store/erasures.ts';
import { keyRequestMessage } from './messages.ts';

/**
 * Accepts a re-sealed envelope from a device that was offered the request. An offer that lapsed is still good while the request is open: to
 * lapse only means that others are asked too, and a slow holder must not be asked for ever and refused each time.
 */
export function fulfillKeyRequest(parts: Parts): Rpc {
  const { db } = parts;
  return unary(SessionService.method.fulfillKeyRequest, {
    allow: ['device'],
    async handle(request, call) {
      keepTrace('key delivered');
      const holder = deviceCaller(call);
      const { attempt, envelope } = request;
      if (!envelope) throw new Error('the contract requires an envelope');
      const once = askedRequest(SessionService.method.fulfillKeyRequest, request, deviceKey(holder));
      let checked: CheckedEnvelope;
      try {
        checked = await checkedEnvelope(
          parts,
          { keyRequestId: request.keyRequestId.toLowerCase(), attempt, envelope, path: 'envelope' },
          holder,
          call,
        );
      } catch (refusal) {
        if (!(refusal instanceof ConnectError)) throw refusal;
        // Rights that ended after the key was delivered take nothing back from the first answer.
        const earlier = await earlierAnswer(db, once);
        if (earlier) return earlier;
        throw refusal;
      }

      const { requester } = checked.offered.request;
      const { response } = await answerOnce(db, once, async (tx) => {
        const [fulfilled] = await acceptEnvelopes(tx, [checked], { holder, writerBuild: parts.writerBuild });
        if (!fulfilled || fulfilled instanceof ConnectError) throw fulfilled ?? new Error('one envelope, one result');
        tx.afterCommit(() => tellFulfilled(fulfilled, call));
        return create(FulfillKeyRequestResponseSchema, { keyRequest: keyRequestMessage(fulfilled) });
      }).catch((error: unknown) => refuseErased(db, requester, error));
      return response;
    },
  });
}

async function checkedEnvelope(
  parts: Parts,
  sent: SentEnvelope,
  holder: DeviceId,
  call: Call,
): Promise<CheckedEnvelope> {
  const [checked] = await checkEnvelopes(parts, [sent], holder, call);
  if (!checked || checked instanceof ConnectError) throw checked ?? new Error('one envelope, one result');
  return checked;
}

/** Either user may be erased between the look at the device lists and the write; the devices of an erased user are revoked. */
async function refuseErased(db: Parts['db'], requester: DeviceId, error: unknown): Promise<never> {
  if (!isOfErasedUser(error)) throw error;
  const [erased] = await erasedAmong(db, [requester.userId]);
  throw notEntitled(erased === undefined ? 'holder' : 'requester', MissCause.DEVICE_REVOKED);
}
