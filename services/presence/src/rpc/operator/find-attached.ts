import { timestampFromMs } from '@bufbuild/protobuf/wkt';
import { PresenceOperatorService } from '@keytrail/contracts';
import { type Rpc, unary } from '@keytrail/rpc';
import { pseudonym } from '@keytrail/telemetry';
import { orRedisAway } from '../../redis-away.ts';
import type { LeaseStore } from '../../store/lease-store.ts';
import { tellInLog } from './told-in-log.ts';

const defaultLimit = 1_000;

/** Entries of devices, online or not: all there are, or those of some users. */
export function findAttached({ leases }: { readonly leases: LeaseStore }): Rpc {
  return unary(PresenceOperatorService.method.findAttached, {
    allow: ['operator', 'service:session'],
    handle({ userIds, limit }, call) {
      tellInLog(call, userIds);
      const most = limit || defaultLimit;
      return orRedisAway(async () => {
        const found = userIds.length > 0 ? await leases.findAll(userIds) : await allEntries(leases, most + 1);
        const alive = new Set(
          (await leases.listLeases()).flatMap((lease) => (lease.endsInMs > 0 ? lease.gatewayId : [])),
        );
        return {
          devices: found.slice(0, most).map(({ userId, deviceId, entry }) => ({
            device: { userId, deviceId },
            userPseudonym: pseudonym(userId),
            devicePseudonym: pseudonym(deviceId),
            gatewayId: entry.gatewayId,
            connectionId: entry.connectionId,
            online: alive.has(entry.gatewayId),
            ...(entry.attachedAtMs > 0 && { attachedAt: timestampFromMs(entry.attachedAtMs) }),
          })),
          more: found.length > most,
        };
      });
    },
  });
}

async function allEntries(leases: LeaseStore, most: number) {
  const found = [];
  for await (const page of leases.scanEntries()) {
    found.push(...page);
    if (found.length >= most) break;
  }
  return found;
}
