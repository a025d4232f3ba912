import { type DeviceId, sameDevice } from './device.ts';
import type { ConversationRecord, EpochRecord, KeyFacts, RequestFacts } from './key-facts.ts';

/** One thing that happened. */
export interface TimelineEvent {
  readonly happenedAt: Date;
  readonly event: string;
  /** The service whose rows say so. */
  readonly source: 'identity-keys' | 'conversation' | 'session' | 'presence';
  readonly details: Readonly<Record<string, string>>;
  /** Empty when unknown. */
  readonly traceId: string;
  readonly writerBuild: string;
}

type Draft = Omit<TimelineEvent, 'happenedAt' | 'traceId' | 'writerBuild'> & {
  readonly at: Date | undefined;
  readonly traceId?: string;
  readonly writerBuild?: string;
};

/** Everything that happened, oldest first; what happened at one time stays in the order of cause and effect. Times that nobody recorded are left out. */
export function timelineOf(facts: KeyFacts): TimelineEvent[] {
  return [
    ...deviceEvents(facts),
    ...conversationEvents(facts),
    ...sessionEvents(facts),
    ...facts.requests.flatMap((request) => requestEvents(facts, request)),
    ...envelopeEvents(facts),
    ...presenceEvents(facts),
  ]
    .flatMap(({ at, traceId = '', writerBuild = '', ...event }) =>
      at === undefined ? [] : [{ happenedAt: at, traceId, writerBuild, ...event }],
    )
    .sort((a, b) => a.happenedAt.getTime() - b.happenedAt.getTime());
}

function deviceEvents({ devices, reader, locallyRevokedAt, session }: KeyFacts): Draft[] {
  const known = devices.known ? devices.value : [];
  const events = known.flatMap((device): Draft[] => {
    const isReader = sameDevice(device, reader);
    if (!isReader && !(session && sameDevice(device, session.initiator))) return [];
    const details = { device: nameOf(device), role: isReader ? 'reader' : 'initiator' };
    const { traceId, writerBuild } = device;
    return [
      { at: device.registeredAt, event: 'device_registered', source: 'identity-keys', details, traceId, writerBuild },
      {
        at: device.revokedAt,
        event: 'device_revoked',
        source: 'identity-keys',
        details,
        traceId: device.revocationTraceId,
        writerBuild: device.revocationWriterBuild,
      },
    ];
  });
  return [
    ...events,
    { at: locallyRevokedAt, event: 'revocation_noted', source: 'session', details: { device: nameOf(reader) } },
  ];
}

function conversationEvents({ conversation, sessionId }: KeyFacts): Draft[] {
  const record = conversation.known ? conversation.value : undefined;
  if (!record) return [];
  const { traceId, writerBuild, standing } = record;
  const source = 'conversation';
  return [
    {
      at: record.createdAt,
      event: 'conversation_created',
      source,
      details: { type: record.type },
      traceId,
      writerBuild,
    },
    ...record.memberships.flatMap((membership): Draft[] => [
      {
        at: membership.joinedAt,
        event: 'member_added',
        source,
        details: { since_epoch: String(membership.joinedEpoch), role: membership.role },
        traceId: membership.traceId,
        writerBuild: membership.writerBuild,
      },
      {
        at: membership.leftAt,
        event: 'member_left',
        source,
        details: { last_epoch: String(membership.leftEpoch) },
        traceId: membership.leftTraceId,
        writerBuild: membership.leftWriterBuild,
      },
    ]),
    ...epochsAround(record, sessionId).map(
      (epoch): Draft => ({
        at: epoch.committedAt,
        event: 'epoch_committed',
        source,
        details: {
          epoch: String(epoch.epoch),
          session_id: epoch.sessionId,
          ...(epoch.sessionId === sessionId && { asked: 'yes' }),
        },
        traceId: epoch.traceId,
        writerBuild: epoch.writerBuild,
      }),
    ),
    {
      at: standing?.standing === 'candidate' ? standing.beganAt : undefined,
      event: 'candidate_begun',
      source,
      details: { session_id: sessionId },
      ...(standing && { traceId: standing.traceId, writerBuild: standing.writerBuild }),
    },
    {
      at: standing?.standing === 'aborted' ? standing.decidedAt : undefined,
      event: 'candidate_given_up',
      source,
      details: { session_id: sessionId },
      ...(standing && { traceId: standing.traceId, writerBuild: standing.writerBuild }),
    },
    {
      at: record.rotationDueSince,
      event: 'rotation_due',
      source,
      details: { because: record.rotationDueReason },
      traceId: record.rotationDueTraceId,
      writerBuild: record.rotationDueWriterBuild,
    },
  ];
}

/** The epoch of the session with its neighbours, and the current one: the others say nothing about it. */
function epochsAround({ epochs, currentEpoch }: ConversationRecord, sessionId: string): EpochRecord[] {
  const asked = epochs.find((epoch) => epoch.sessionId === sessionId)?.epoch ?? currentEpoch;
  return epochs.filter(({ epoch }) => epoch === currentEpoch || (epoch >= asked - 1n && epoch <= asked + 1n));
}

function sessionEvents({ session, discardedAt, sessionId }: KeyFacts): Draft[] {
  const stored: Draft[] = session
    ? [
        {
          at: session.createdAt,
          event: 'session_stored',
          source: 'session',
          details: {
            epoch: String(session.epoch),
            initiator: nameOf(session.initiator),
            envelopes: `${session.envelopesPresent} of ${session.envelopesExpected}`,
            ephemeral_key: session.hasEphemeralKey ? 'present' : 'missing',
            ...(session.withheldReason !== undefined && { withheld_because: session.withheldReason }),
            ...(session.writerSchema !== undefined && { writer_knew: session.writerSchema }),
          },
          traceId: session.traceId,
          writerBuild: session.writerBuild,
        },
      ]
    : [];
  return [
    ...stored,
    { at: discardedAt, event: 'session_discarded', source: 'session', details: { session_id: sessionId } },
  ];
}

/** What comes of a request is often of other traces (of a batch, of a holder that attached later), and rows keep that of the request alone. */
function requestEvents({ now }: KeyFacts, request: RequestFacts): Draft[] {
  const { keyRequestId, traceId } = request;
  const about = { key_request_id: keyRequestId };
  const source = 'session';
  return [
    {
      at: request.requestedAt,
      event: 'key_requested',
      source,
      details: { ...about, kind: request.kind },
      traceId,
      writerBuild: request.writerBuild,
    },
    { at: request.holderWantedAt, event: 'holder_wanted', source, details: about },
    ...request.offers.flatMap((offer): Draft[] => {
      const details = { ...about, holder: nameOf(offer.holder), attempt: String(offer.attempt) };
      const lapsed = offer.declinedAt === undefined && request.state !== 'FULFILLED' && offer.lapsesAt <= now;
      return [
        { at: offer.offeredAt, event: 'offered', source, details },
        {
          at: offer.declinedAt,
          event: 'declined',
          source,
          details: { ...details, because: offer.declinedBecause },
        },
        { at: lapsed ? offer.lapsesAt : undefined, event: 'offer_lapsed', source, details },
      ];
    }),
    {
      at: request.endedAt,
      event: request.state === 'FULFILLED' ? 'fulfilled' : 'key_request_ended',
      source,
      details: {
        ...about,
        because: request.endedBecause ?? 'unknown',
        ...(request.acceptedAttempt !== undefined && { attempt: String(request.acceptedAttempt) }),
      },
    },
  ];
}

function envelopeEvents({ envelopes }: KeyFacts): Draft[] {
  return envelopes.flatMap((envelope): Draft[] => {
    const details = { attempt: String(envelope.attempt), sealed_by: nameOf(envelope.sealer) };
    const source = 'session';
    return [
      // That of the first write is told with the session.
      { at: envelope.attempt > 0 ? envelope.writtenAt : undefined, event: 'envelope_stored', source, details },
      { at: envelope.openedAt, event: 'acknowledged', source, details },
      {
        at: envelope.rejectedAt,
        event: 'rejected',
        source,
        details: { ...details, because: envelope.rejectedBecause ?? 'unknown' },
      },
    ];
  });
}

function presenceEvents({ presence }: KeyFacts): Draft[] {
  if (!presence.known) return [];
  return presence.value.gateways.map(({ lastLossAt, gatewayId }) => ({
    at: lastLossAt,
    event: 'presence_lost',
    source: 'presence' as const,
    details: { gateway: gatewayId },
  }));
}

const nameOf = ({ userId, deviceId }: DeviceId) => `${userId}/${deviceId}`;
