import { ConversationService } from '@keytrail/contracts';
import { deviceCaller, type Rpc, unary } from '@keytrail/rpc';
import type { Parts } from '../parts.ts';
import { notFoundOrNotPermitted } from '../refusals.ts';
import { membershipsOf } from '../store/memberships.ts';
import { declineRotationAsked } from '../store/rotations.ts';

/** The next device is asked at once. */
export function declineRotation({ db }: Parts, asking: { soon(): void }): Rpc {
  return unary(ConversationService.method.declineRotation, {
    allow: ['device'],
    async handle({ conversationId, expectedEpoch }, call) {
      const { userId, deviceId } = deviceCaller(call);
      const memberships = await membershipsOf(db, conversationId, [userId]);
      if (memberships(userId).role === undefined) throw notFoundOrNotPermitted();
      if (await declineRotationAsked(db, conversationId, expectedEpoch, { userId, deviceId })) asking.soon();
      return {};
    },
  });
}
