import { timestampFromDate } from '@bufbuild/protobuf/wkt';
import { ConversationService } from '@keytrail/contracts';
import { deviceCaller, type Rpc, unary } from '@keytrail/rpc';
import type { Parts } from '../parts.ts';
import { notFoundOrNotPermitted } from '../refusals.ts';
import { readConversationOf } from '../store/reads.ts';
import { rotationStanding } from '../store/rotations.ts';

/** What a device needs to make the next session: the conversation as it stands, who else is at it, and whom to seal to. */
export function getRotation({ db, prisma, devices }: Parts): Rpc {
  return unary(ConversationService.method.getRotation, {
    allow: ['device'],
    async handle({ conversationId }, call) {
      const { userId } = deviceCaller(call);
      const conversation = await readConversationOf(prisma, conversationId, userId);
      if (!conversation) throw notFoundOrNotPermitted();
      // Later than the roster: devices that were added meanwhile are known to whoever seals, and a roster that moved is refused at the commit.
      const [lists, standing] = await Promise.all([
        devices.devicesOf(conversation.members.map((member) => member.userId)),
        rotationStanding(db, conversationId),
      ]);
      return {
        conversation,
        ...(standing?.epoch === conversation.epoch && {
          dueSince: timestampFromDate(standing.dueSince),
          ...(standing.asked && {
            askedDevice: standing.asked.device,
            askedUntil: timestampFromDate(standing.asked.until),
          }),
        }),
        recipients: lists.flatMap((list) =>
          list.devices
            .filter(({ revokedAt }) => !revokedAt)
            .map((device) => ({ userId: device.userId, deviceId: device.deviceId })),
        ),
        deviceLists: lists.map((list) => ({ userId: list.userId, version: list.version })),
      };
    },
  });
}
