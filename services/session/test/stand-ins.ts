import { create, type MessageInitShape } from '@bufbuild/protobuf';
import { timestampFromDate } from '@bufbuild/protobuf/wkt';
import {
  ConversationOperatorService,
  ConversationService,
  type DeviceRef,
  DeviceSchema,
  type GatewayViewSchema,
  HistoryPolicy,
  IdentityKeysOperatorService,
  IdentityKeysService,
  PresenceOperatorService,
  PresenceService,
} from '@keytrail/contracts';
import { type RunningServer, refuse, type ServerOptions, startServer, unary } from '@keytrail/rpc';
import { pseudonym } from '@keytrail/telemetry';
import type { DeviceId } from '../src/domain/device.ts';
import type { MadeSession, Person, TestDevice } from './people.ts';

interface Asked {
  readonly conversationId: string;
  readonly sessionId: string;
  readonly userIds: readonly string[];
}

interface Span {
  readonly fromEpoch: bigint;
  readonly toEpoch: bigint;
}

export interface ConversationFacts {
  readonly sessions: Map<string, bigint>;
  readonly members: Map<string, Span[]>;
  historyPolicy: HistoryPolicy;
  /** What became of sessions that are no epoch: candidate, aborted or lost. */
  readonly standings: Map<string, string>;
  /** Why a rotation is due. */
  rotationDue?: string;
}

/** The services that session asks, as small real servers whose answers a test decides. */
export interface StandIns {
  readonly conversations: Map<string, ConversationFacts>;
  readonly people: Map<string, Person>;
  readonly revoked: Map<string, Date>;
  /** When users were erased, as identity-keys tells operators. */
  readonly erased: Map<string, Date>;
  readonly unregistered: Set<string>;
  readonly online: Set<string>;
  /** What presence says of its gateways to operators. */
  readonly gateways: MessageInitShape<typeof GatewayViewSchema>[];
  /** What identity-keys says is missing of a device's key set, by keyOf. */
  readonly keysMissing: Map<string, string[]>;
  /** What identity-keys lists as revoked, in the order of their numbers; pages are short. `away`: it cannot be asked. */
  readonly revocations: { numbered: { number: bigint; device: DeviceId; revokedAt: Date }[]; away: boolean };
  readonly asked: { conversation: number; identityKeys: number; presence: number };
  readonly targets: { conversation: string; identityKeys: string; presence: string };
  /** Makes the conversation know the session and its members, from the session's epoch on. */
  commit(made: MadeSession, people: readonly Person[], spans?: readonly Span[]): ConversationFacts;
  attach(...devices: TestDevice[]): void;
  stop(): Promise<void>;
}

export function keyOf({ userId, deviceId }: { userId: string; deviceId: string }): string {
  return `${userId} ${deviceId}`;
}

const revocationsOnPage = 2;

type Server = Omit<ServerOptions, 'service' | 'rpcs' | 'services'>;

export async function startStandIns(server: Server): Promise<StandIns> {
  const conversations = new Map<string, ConversationFacts>();
  const people = new Map<string, Person>();
  const revoked = new Map<string, Date>();
  const erased = new Map<string, Date>();
  const unregistered = new Set<string>();
  const online = new Set<string>();
  const gateways: MessageInitShape<typeof GatewayViewSchema>[] = [
    { gatewayId: 'gateway', alive: true, isOwn: true, leaseLeftMs: 9_000n },
  ];
  const keysMissing = new Map<string, string[]>();
  const revocations: StandIns['revocations'] = { numbered: [], away: false };
  const asked = { conversation: 0, identityKeys: 0, presence: 0 };

  const entitlements = ({ conversationId, sessionId, userIds }: Asked) => {
    const known = conversations.get(conversationId);
    const epoch = known?.sessions.get(sessionId) ?? 0n;
    const [currentSessionId, currentEpoch] = [...(known?.sessions ?? [])].at(-1) ?? ['', 0n];
    return {
      conversationKnown: known !== undefined,
      sessionCommitted: epoch > 0n,
      epoch,
      currentEpoch,
      currentSessionId,
      historyPolicy: known?.historyPolicy ?? HistoryPolicy.UNSPECIFIED,
      lastWriteTraceId: 'f'.repeat(32),
      entitlements: userIds.map((userId) => {
        const memberships = known?.members.get(userId) ?? [];
        const within = ({ fromEpoch, toEpoch }: Span) => fromEpoch <= epoch && (toEpoch === 0n || epoch <= toEpoch);
        const memberNow = memberships.some(({ toEpoch }) => toEpoch === 0n);
        return {
          userId,
          everMember: memberships.length > 0,
          entitled: memberships.some(within) || (memberNow && known?.historyPolicy === HistoryPolicy.SHARED),
          memberNow,
          memberships: memberships.map((span) => ({ ...span })),
        };
      }),
    };
  };
  const describe = (conversationId: string, sessionId: string, userId: string) => {
    const known = conversations.get(conversationId);
    if (!known) throw refuse('NOT_FOUND_OR_NOT_PERMITTED', 'unknown');
    const epochs = [...known.sessions].map(([id, epoch]) => ({
      epoch,
      sessionId: id,
      committedAt: timestampFromDate(new Date()),
      writerBuild: 'conversation-build',
      traceId: 'e'.repeat(32),
    }));
    const [currentSessionId, currentEpoch] = [...known.sessions].at(-1) ?? ['', 0n];
    const standing = known.sessions.has(sessionId) ? 'committed' : known.standings.get(sessionId);
    return {
      conversationId,
      type: 'GROUP',
      currentEpoch,
      currentSessionId,
      memberships: [...known.members].flatMap(([member, spans]) =>
        userId === '' || userId === member
          ? spans.map(({ fromEpoch, toEpoch }) => ({
              userId: member,
              userPseudonym: pseudonym(member),
              joinedEpoch: fromEpoch,
              leftEpoch: toEpoch,
              joinedAt: timestampFromDate(new Date()),
              ...(toEpoch !== 0n && {
                leftAt: timestampFromDate(new Date()),
                leftWriterBuild: 'conversation-build',
                leftTraceId: 'b'.repeat(32),
              }),
            }))
          : [],
      ),
      epochs: epochs.reverse(),
      ...(standing !== undefined && { askedSession: { sessionId, standing } }),
      ...(known.rotationDue !== undefined && {
        rotationDueReason: known.rotationDue,
        rotationDueSince: timestampFromDate(new Date()),
        rotationDueWriterBuild: 'conversation-build',
        rotationDueTraceId: 'a'.repeat(32),
      }),
      writerBuild: 'conversation-build',
      traceId: 'f'.repeat(32),
    };
  };
  const conversation = await startServer({
    ...server,
    service: 'conversation',
    services: [ConversationService, ConversationOperatorService],
    rpcs: [
      unary(ConversationOperatorService.method.describeConversation, {
        allow: ['service:session', 'operator'],
        handle: ({ conversationId, sessionId, userId }) => describe(conversationId, sessionId, userId),
      }),
      unary(ConversationService.method.checkEntitlement, {
        allow: ['service'],
        handle(check) {
          asked.conversation++;
          return entitlements(check);
        },
      }),
      unary(ConversationService.method.checkEntitlements, {
        allow: ['service'],
        handle({ checks }) {
          asked.conversation++;
          return { answers: checks.map(entitlements) };
        },
      }),
    ],
  });
  const identityKeys = await startServer({
    ...server,
    service: 'identity-keys',
    services: [IdentityKeysService, IdentityKeysOperatorService],
    rpcs: [
      unary(IdentityKeysOperatorService.method.findDevices, {
        allow: ['service:session', 'operator'],
        handle({ userId: named, userPseudonym }) {
          const userId =
            named || [...people.keys(), ...erased.keys()].find((known) => pseudonym(known) === userPseudonym);
          if (userId === undefined) throw refuse('NOT_FOUND_OR_NOT_PERMITTED', 'no user here has this pseudonym');
          const devices = people.get(userId)?.devices.filter((device) => !unregistered.has(keyOf(device))) ?? [];
          const erasedAt = erased.get(userId);
          return {
            userId,
            deviceListVersion: BigInt(devices.length),
            ...(erasedAt && { erasedAt: timestampFromDate(erasedAt) }),
            devices: devices.map((device) => {
              const revokedAt = revoked.get(keyOf(device));
              return {
                device: { userId, deviceId: device.deviceId },
                ...(device.listed.addedAt && { registeredAt: device.listed.addedAt }),
                ...(revokedAt && {
                  revokedAt: timestampFromDate(revokedAt),
                  revocationWriterBuild: 'identity-keys-build',
                  revocationTraceId: 'c'.repeat(32),
                }),
                keysMissing: keysMissing.get(keyOf(device)) ?? [],
                oneTimePrekeys: 10,
                oneTimeKemPrekeys: 10,
                writerBuild: 'identity-keys-build',
                traceId: 'd'.repeat(32),
              };
            }),
          };
        },
      }),
      unary(IdentityKeysService.method.getDevices, {
        allow: ['service'],
        handle({ userIds }) {
          asked.identityKeys++;
          return {
            deviceLists: userIds.map((userId) => {
              const devices = people.get(userId)?.devices.filter((device) => !unregistered.has(keyOf(device))) ?? [];
              return {
                userId,
                version: BigInt(devices.length),
                devices: devices.map((device) => {
                  const revokedAt = revoked.get(keyOf(device));
                  return revokedAt === undefined
                    ? device.listed
                    : create(DeviceSchema, { ...device.listed, revokedAt: timestampFromDate(revokedAt) });
                }),
              };
            }),
          };
        },
      }),
      unary(IdentityKeysService.method.listRevokedDevices, {
        allow: ['service:session'],
        handle({ after }) {
          if (revocations.away) throw refuse('PEER_UNAVAILABLE', 'away', { metadata: { peer: 'identity-keys' } });
          const rest = revocations.numbered.filter(({ number }) => number > after);
          const shown = rest.slice(0, revocationsOnPage);
          return {
            revocations: shown.map((each) => ({ ...each, revokedAt: timestampFromDate(each.revokedAt) })),
            more: rest.length > shown.length,
          };
        },
      }),
    ],
  });
  const presence = await startServer({
    ...server,
    service: 'presence',
    services: [PresenceService, PresenceOperatorService],
    rpcs: [
      unary(PresenceOperatorService.method.describeGateways, {
        allow: ['service:session'],
        handle: () => ({ gateways, storeReachable: true }),
      }),
      unary(PresenceOperatorService.method.findAttached, {
        allow: ['service:session'],
        handle: ({ userIds }) => ({
          devices: [...online].flatMap((key) => {
            const [userId = '', deviceId = ''] = key.split(' ');
            return userIds.includes(userId)
              ? [{ device: { userId, deviceId }, gatewayId: 'gateway', online: true }]
              : [];
          }),
        }),
      }),
      unary(PresenceService.method.listOnline, {
        allow: ['service'],
        handle({ userIds }) {
          asked.presence++;
          return {
            devices: [...online].flatMap((key) => {
              const [userId = '', deviceId = ''] = key.split(' ');
              return userIds.includes(userId) ? [{ device: { userId, deviceId } as DeviceRef }] : [];
            }),
          };
        },
      }),
    ],
  });
  const target = ({ grpcPort }: RunningServer) => `127.0.0.1:${grpcPort}`;

  return {
    conversations,
    people,
    revoked,
    erased,
    unregistered,
    online,
    gateways,
    keysMissing,
    revocations,
    asked,
    targets: { conversation: target(conversation), identityKeys: target(identityKeys), presence: target(presence) },
    commit({ session }, members, spans = [{ fromEpoch: 1n, toEpoch: 0n }]) {
      const facts = conversations.get(session.conversationId) ?? {
        sessions: new Map(),
        members: new Map(),
        historyPolicy: HistoryPolicy.OWN_MEMBERSHIP,
        standings: new Map(),
      };
      conversations.set(session.conversationId, facts);
      facts.sessions.set(session.sessionId, session.epoch);
      for (const member of members) {
        people.set(member.userId, member);
        facts.members.set(member.userId, [...spans]);
      }
      return facts;
    },
    attach(...devices) {
      for (const device of devices) online.add(keyOf(device));
    },
    async stop() {
      await Promise.all([conversation.stop(), identityKeys.stop(), presence.stop()]);
    },
  };
}
