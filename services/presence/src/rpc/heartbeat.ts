import { PresenceService } from '@keytrail/contracts';
import { deviceCaller, type Rpc, refuse, unary } from '@keytrail/rpc';
import type { Gateway } from '../gateway.ts';

/** A heartbeat that meets a replica which does not hold the stream costs a question to the one that does, and Redis nothing. */
export function heartbeat({ gateway }: { gateway: Gateway }): Rpc {
  return unary(PresenceService.method.heartbeat, {
    allow: ['device'],
    async handle({ connectionId }, call) {
      const { userId, deviceId } = deviceCaller(call);
      const held = await gateway.beat(userId, deviceId, connectionId).catch((cause: unknown) => {
        throw refuse('PEER_UNAVAILABLE', 'the replica that holds this connection does not answer', {
          metadata: { peer: 'presence' },
          retryAfterMs: 1_000,
          cause,
        });
      });
      if (!held) {
        throw refuse('CONNECTION_UNKNOWN', 'this connection is not attached: attach again', {
          metadata: { connection_id: connectionId },
        });
      }
      return {};
    },
  });
}
