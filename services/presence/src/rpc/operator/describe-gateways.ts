import type { MessageInitShape } from '@bufbuild/protobuf';
import { timestampFromDate } from '@bufbuild/protobuf/wkt';
import { type GatewayViewSchema, PresenceOperatorService } from '@keytrail/contracts';
import { type Rpc, unary } from '@keytrail/rpc';
import type { Gateway } from '../../gateway.ts';
import type { LeaseStore } from '../../store/lease-store.ts';
import { isRedisAway } from '../../store/redis-connection.ts';
import { tellInLog } from './told-in-log.ts';

interface Parts {
  readonly leases: LeaseStore;
  readonly gateway: Gateway;
}

const mostUsers = 100_000;
const streamsAtOnce = 1_000;

/** Who has a lease, whom the entries point to, and what of the own streams others cannot find. */
export function describeGateways({ leases, gateway }: Parts): Rpc {
  return unary(PresenceOperatorService.method.describeGateways, {
    allow: ['operator', 'service:session'],
    async handle(_request, call) {
      tellInLog(call);
      try {
        return { ...(await picture({ leases, gateway }, call.signal)), storeReachable: true };
      } catch (error) {
        if (!isRedisAway(error)) throw error;
        return { gateways: [ownView(gateway)], storeReachable: false };
      }
    },
  });
}

async function picture({ leases, gateway }: Parts, signal: AbortSignal) {
  const entries = new Map<string, number>();
  const users = new Set<string>();
  let entriesMore = false;
  for await (const page of leases.scanEntries()) {
    signal.throwIfAborted();
    for (const { userId, entry } of page) {
      users.add(userId);
      entries.set(entry.gatewayId, (entries.get(entry.gatewayId) ?? 0) + 1);
    }
    entriesMore = users.size >= mostUsers;
    if (entriesMore) break;
  }
  const streamsWithoutEntry = await countLost({ leases, gateway });
  const left = new Map((await leases.listLeases()).map(({ gatewayId, endsInMs }) => [gatewayId, endsInMs]));
  const ids = [...new Set([gateway.id, ...left.keys(), ...entries.keys()])];
  return {
    gateways: ids.map((gatewayId) => {
      const leaseLeftMs = Math.max(0, Math.round(left.get(gatewayId) ?? 0));
      return {
        ...(gatewayId === gateway.id ? { ...ownView(gateway), streamsWithoutEntry } : { gatewayId }),
        alive: leaseLeftMs > 0,
        leaseLeftMs: BigInt(leaseLeftMs),
        entries: BigInt(entries.get(gatewayId) ?? 0),
      };
    }),
    entriesMore,
  };
}

function ownView(gateway: Gateway): MessageInitShape<typeof GatewayViewSchema> & { readonly gatewayId: string } {
  return {
    gatewayId: gateway.id,
    isOwn: true,
    streams: BigInt(gateway.attachments.size),
    ...(gateway.lastLossAt && { lastLossAt: timestampFromDate(gateway.lastLossAt) }),
  };
}

/** Streams that are held here, and that no other gateway finds by the entries. */
async function countLost({ leases, gateway }: Parts): Promise<bigint> {
  const held = gateway.attachments.all().filter(({ ended }) => !ended);
  let lost = 0;
  for (let from = 0; from < held.length; from += streamsAtOnce) {
    const some = held.slice(from, from + streamsAtOnce);
    const found = await leases.findAll([...new Set(some.map(({ userId }) => userId))]);
    const entries = new Set(found.map(({ deviceId, userId, entry }) => `${userId} ${deviceId} ${entry.connectionId}`));
    lost += some.filter(
      (one) => !one.ended && !entries.has(`${one.userId} ${one.deviceId} ${one.connectionId}`),
    ).length;
  }
  return BigInt(lost);
}
