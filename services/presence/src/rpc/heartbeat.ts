import { PresenceService } from '@keytrail/contracts';
import { deviceCaller, type Rpc, refuse, unary } from '@keytrail/rpc';
import type { Gateway } from '../gateway.ts';
import type { LeaseStore } from '../store/lease-store.ts';

/** Only a heartbeat that meets a replica which does not hold the stream costs a look into Redis. */
export function heartbeat({ gateway, leases }: { gateway: Gateway; leases: LeaseStore }): Rpc {
  return unary(PresenceService.method.heartbeat, {
    allow: ['device'],
    async handle({ connectionId }, call) {
      const { userId, deviceId } = deviceCaller(call);
      const here = gateway.attachments.of(userId, deviceId);
      if (here && !here.ended && here.connectionId === connectionId) {
        here.lastHeartbeatMs = performance.now();
        return {};
      }
      const entry = await leases.find(userId, deviceId);
      if (
        entry?.connectionId !== connectionId ||
        entry.gatewayId === gateway.id ||
        !(await leases.isGatewayAlive(entry.gatewayId))
      ) {
        throw refuse('CONNECTION_UNKNOWN', 'this connection is not attached: attach again', {
          metadata: { connection_id: connectionId },
        });
      }
      gateway.passHeartbeatOn(entry.gatewayId, userId, deviceId, connectionId);
      return {};
    },
  });
}
