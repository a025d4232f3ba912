import type { MessageInitShape } from '@bufbuild/protobuf';
import { timestampFromDate } from '@bufbuild/protobuf/wkt';
import type { KeyRequestViewSchema } from '@keytrail/contracts';
import type { Queryable } from '@keytrail/storage';
import { keyRequestUnknown } from '../../refusals.ts';
import { readKeyRequest, type SeenKeyRequest } from '../../store/operator-key-requests.ts';
import { keyRequestMessage } from '../messages.ts';

export function keyRequestView({
  request,
  writerBuild,
  offers,
}: SeenKeyRequest): MessageInitShape<typeof KeyRequestViewSchema> {
  return {
    keyRequest: keyRequestMessage(request),
    traceId: request.traceparent.split('-')[1] ?? '',
    writerBuild,
    offers: offers.map(({ holder, attempt, offeredAt, lapsesAt, declinedBecause }) => ({
      holder: { ...holder },
      attempt,
      offeredAt: timestampFromDate(offeredAt),
      lapsesAt: timestampFromDate(lapsesAt),
      declinedBecause,
    })),
    ...(request.endedAt && { endedAt: timestampFromDate(request.endedAt) }),
    acceptedAttempt: request.acceptedAttempt ?? 0,
  };
}

/** The request as it is now. Throws NOT_FOUND_OR_NOT_PERMITTED. */
export async function viewKeyRequest(db: Queryable, keyRequestId: string) {
  return keyRequestView(await seenKeyRequest(db, keyRequestId));
}

/** Throws NOT_FOUND_OR_NOT_PERMITTED. */
export async function seenKeyRequest(db: Queryable, keyRequestId: string): Promise<SeenKeyRequest> {
  const seen = await readKeyRequest(db, keyRequestId);
  if (!seen) throw keyRequestUnknown();
  return seen;
}
