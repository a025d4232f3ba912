import { fromBinary, type MessageInitShape } from '@bufbuild/protobuf';
import { timestampFromDate } from '@bufbuild/protobuf/wkt';
import { SessionHeaderSchema, type SessionViewSchema } from '@keytrail/contracts';
import { damagesOf, missingEnvelopes } from '../../domain/session-damage.ts';
import type { SeenSession } from '../../store/operator-sessions.ts';

/** A session as operators see it: what is there of it, never a key. */
export function sessionView(conversationId: string, seen: SeenSession): MessageInitShape<typeof SessionViewSchema> {
  const { sessionId, discardedAt, createdAt } = seen;
  if (discardedAt) return { conversationId, sessionId, discardedAt: timestampFromDate(discardedAt) };
  return {
    conversationId,
    sessionId,
    epoch: seen.epoch,
    initiator: { userId: seen.initiatorUserId ?? '', deviceId: seen.initiatorDeviceId ?? '' },
    imported: seen.imported,
    ephemeralKeyPresent: seen.ephemeralKeyPresent,
    identityKeyPresent: seen.identityKeyPresent,
    headerPresent: seen.headerPresent,
    envelopesExpected: seen.envelopesExpected,
    envelopesPresent: seen.envelopesPresent,
    envelopesDelivered: seen.envelopesDelivered,
    envelopesErased: seen.envelopesErased,
    envelopesMissing: missingEnvelopes(seen),
    withheld: seen.withholdingsPresent,
    requestsOpen: seen.requestsOpen,
    rosterVersion: rosterVersionOf(seen.header),
    writerBuild: seen.writerBuild ?? '',
    traceId: seen.traceId ?? '',
    damages: damagesOf(seen),
    ...(createdAt && { createdAt: timestampFromDate(createdAt) }),
  };
}

/** As the header says; 0 where there is none that can be read. */
function rosterVersionOf(header: Buffer | null): bigint {
  try {
    return header ? fromBinary(SessionHeaderSchema, header).rosterVersion : 0n;
  } catch {
    return 0n;
  }
}
