import { timestampFromMs } from '@bufbuild/protobuf/wkt';
import type { Client } from '@connectrpc/connect';
import { type ConversationService, PresenceService } from '@keytrail/contracts';
import { type Rpc, unary } from '@keytrail/rpc';
import { orRedisAway } from '../redis-away.ts';
import type { LeaseStore } from '../store/lease-store.ts';

interface Parts {
  readonly leases: LeaseStore;
  readonly conversation: Pick<Client<typeof ConversationService>, 'listSharedUsers'>;
}

export function listOnline({ leases, conversation }: Parts): Rpc {
  return unary(PresenceService.method.listOnline, {
    allow: ['device', 'service'],
    async handle({ userIds }, call) {
      const visible = call.caller.kind === 'device' ? await visibleTo(call.caller.userId, userIds) : userIds;
      const online = await orRedisAway(() => leases.listOnline(visible));
      return {
        devices: online.map(({ userId, deviceId, entry }) => ({
          device: { userId, deviceId },
          attachedAt: timestampFromMs(entry.attachedAtMs),
        })),
      };
    },
  });

  /** Those who share no conversation with the caller look offline: presence must not tell strangers who exists. */
  async function visibleTo(callerId: string, userIds: readonly string[]): Promise<string[]> {
    const others = userIds.filter((userId) => userId !== callerId);
    const shared =
      others.length === 0
        ? new Set<string>()
        : new Set((await conversation.listSharedUsers({ userId: callerId, otherUserIds: others })).userIds);
    return userIds.filter((userId) => userId === callerId || shared.has(userId));
  }
}
