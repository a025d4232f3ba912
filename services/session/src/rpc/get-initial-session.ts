import { SessionService } from '@keytrail/contracts';
import { deviceCaller, type Rpc, unary } from '@keytrail/rpc';
import { keepTrace } from '@keytrail/telemetry';
import { explain, gatherFacts, type MissParts, refuseExplained } from '../miss.ts';
import { isHit, readInitialSession } from '../store/initial-session.ts';
import { initialSessionMessage } from './messages.ts';

/** The hot read: validated, one statement, mapped. Only a miss asks further, so that hits stay cheap and misses are explained. */
export function getInitialSession(parts: MissParts): Rpc {
  const { db } = parts;
  return unary(SessionService.method.getInitialSession, {
    allow: ['device'],
    async handle(request, call) {
      const device = deviceCaller(call);
      const { conversationId, sessionId } = request;
      const row = await readInitialSession(db, conversationId, sessionId, device.userId, device.deviceId);
      if (row !== undefined && isHit(row)) {
        // The end of a miss: a key that somebody delivered.
        if (row.attempt > 0) keepTrace('key recovered');
        return initialSessionMessage(row, sessionId, device);
      }

      // From here on downstream calls carry the sampled flag: whatever explains this miss is part of its trace.
      keepTrace('miss');
      const facts = await gatherFacts(parts, request, device, call);
      if (facts.local.newestAttempt !== row?.attempt) {
        // A key was delivered between the two reads.
        const now = await readInitialSession(db, conversationId, sessionId, device.userId, device.deviceId);
        if (now !== undefined && isHit(now)) return initialSessionMessage(now, sessionId, device);
      }
      throw refuseExplained(request, explain(parts, request, device, facts), facts, parts.config, call);
    },
  });
}
