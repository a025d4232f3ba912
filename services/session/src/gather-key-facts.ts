import { type Timestamp, timestampDate } from '@bufbuild/protobuf/wkt';
import { Code, ConnectError } from '@connectrpc/connect';
import type { DescribeConversationResponse, DeviceView, GatewayView } from '@keytrail/contracts';
import { type Call, withShareOfTime } from '@keytrail/rpc';
import type { DeviceId } from './domain/device.ts';
import type { Answer, PeerName } from './domain/explain-miss.ts';
import type {
  ConversationRecord,
  DeviceRecord,
  GatewayRecord,
  KeyFacts,
  PresenceRecord,
  RequestFacts,
} from './domain/key-facts.ts';
import { explain, explainCause, gatherFacts, holderFacts } from './miss.ts';
import type { OperatorPeers } from './operator-peers.ts';
import type { Parts } from './parts.ts';
import { isHit, readInitialSession } from './store/initial-session.ts';
import { readOwnRows } from './store/key-facts.ts';
import { findKeyRequestsOfSession, type SeenKeyRequest } from './store/operator-key-requests.ts';

export type ExplainParts = Pick<Parts, 'db' | 'peers' | 'config' | 'writerBuild' | 'operatorPeers'>;

export interface Asked {
  readonly conversationId: string;
  readonly sessionId: string;
}

const requestsAtMost = 50;
const epochsAtMost = 200;
const replicasAsked = 4;
/** Whose entries presence is asked for: those who could help first. */
const holderUsersAtMost = 100;

/** Own rows and the peers at once; a peer that cannot be asked leaves its part unknown, one that stays silent too, within the time of the call. */
export async function gatherKeyFacts(
  parts: ExplainParts,
  asked: Asked,
  reader: DeviceId,
  call: Call,
): Promise<KeyFacts> {
  const { db, operatorPeers } = parts;
  const { conversationId, sessionId } = asked;
  const [own, gathered, newest, requests, conversation] = await withShareOfTime(1 / 3, () =>
    Promise.all([
      readOwnRows(db, asked, reader),
      gatherFacts(parts, asked, reader, call),
      readInitialSession(db, conversationId, sessionId, reader.userId, reader.deviceId),
      findKeyRequestsOfSession(db, asked, reader, requestsAtMost),
      askConversation(operatorPeers, { ...asked, userId: reader.userId }, call),
    ]),
  );
  const users = [...new Set([reader.userId, ...gathered.ranked.map(({ userId }) => userId)])];
  const [devices, presence] = await withShareOfTime(1 / 2, () =>
    Promise.all([
      askDevices(operatorPeers, reader, own.session?.initiator, call),
      askPresence(operatorPeers, users.slice(0, holderUsersAtMost), call),
    ]),
  );
  const readable = newest !== undefined && isHit(newest);
  const { local, ranked, answers } = gathered;
  const miss = readable ? undefined : explain(parts, asked, reader, gathered);
  return {
    ...asked,
    reader,
    ...own,
    runningBuild: parts.writerBuild,
    readable,
    miss,
    decided: miss?.kind === 'incomplete' ? explainCause(parts, asked, reader, gathered) : undefined,
    requests: requests.map(requestFacts),
    locallyRevokedAt: local.revokedAt,
    conversation: conversation.known
      ? { known: true, value: conversation.value && conversationRecord(conversation.value) }
      : conversation,
    devices,
    holders: holderFacts(local, ranked, answers),
    presence,
  };
}

/** Undefined when conversation knows nothing of it. */
export async function askConversation(
  peers: OperatorPeers,
  asked: Asked & { readonly userId: string },
  call: Call,
): Promise<Answer<DescribeConversationResponse | undefined>> {
  return answered('conversation', call, async () => {
    try {
      return await peers.conversation.describeConversation({ ...asked, epochsMax: epochsAtMost });
    } catch (error) {
      if (error instanceof ConnectError && error.code === Code.NotFound) return undefined;
      throw error;
    }
  });
}

function askDevices(
  peers: OperatorPeers,
  reader: DeviceId,
  initiator: DeviceId | undefined,
  call: Call,
): Promise<Answer<readonly DeviceRecord[]>> {
  const wanted = initiator ? [reader, initiator] : [reader];
  return answered('identity-keys', call, async () => {
    const lists = await Promise.all(
      [...new Set(wanted.map(({ userId }) => userId))].map((userId) => peers.identityKeys.findDevices({ userId })),
    );
    const isWanted = ({ device }: DeviceView) =>
      wanted.some(({ userId, deviceId }) => device?.userId === userId && device.deviceId === deviceId);
    return lists.flatMap(({ devices }) => devices.filter(isWanted).map(deviceRecord));
  });
}

function askPresence(peers: OperatorPeers, userIds: string[], call: Call): Promise<Answer<PresenceRecord>> {
  return answered('presence', call, async () => {
    const [picture, attached] = await Promise.all([
      describeGateways(peers),
      // Without its store, presence can list nobody, and says so of its gateway.
      peers.presence.findAttached({ userIds }).catch(() => undefined),
    ]);
    return {
      storeReachable: picture.storeReachable,
      gateways: picture.gateways.map(gatewayRecord),
      attached: attached?.devices.flatMap(({ device, gatewayId, online }) =>
        device ? [{ userId: device.userId, deviceId: device.deviceId, gatewayId, online }] : [],
      ),
    };
  });
}

/** A gateway tells its streams itself alone, so replicas are asked by turns until each that lives has, or a few were. */
async function describeGateways(peers: OperatorPeers): Promise<{ storeReachable: boolean; gateways: GatewayView[] }> {
  const gateways = new Map<string, GatewayView>();
  let storeReachable = true;
  for (let asked = 0; asked < replicasAsked; asked += 1) {
    const picture = await peers.presence.describeGateways({});
    storeReachable &&= picture.storeReachable;
    for (const view of picture.gateways)
      if (view.isOwn || !gateways.get(view.gatewayId)?.isOwn) gateways.set(view.gatewayId, view);
    if ([...gateways.values()].every(({ alive, isOwn }) => isOwn || !alive)) break;
  }
  return { storeReachable, gateways: [...gateways.values()] };
}

async function answered<T>(peer: PeerName, call: Call, ask: () => Promise<T>): Promise<Answer<T>> {
  try {
    return { known: true, value: await ask() };
  } catch (err) {
    call.log.warn({ err, peer }, 'a peer could not be asked');
    return { known: false, peer };
  }
}

function requestFacts({ request, writerBuild, offers }: SeenKeyRequest): RequestFacts {
  return { ...request, traceId: request.traceparent.split('-')[1] ?? '', writerBuild, offers };
}

const date = (at: Timestamp | undefined) => at && timestampDate(at);

function conversationRecord(described: DescribeConversationResponse): ConversationRecord {
  const { askedSession: standing } = described;
  return {
    type: described.type,
    currentEpoch: described.currentEpoch,
    currentSessionId: described.currentSessionId,
    rotationDueReason: described.rotationDueReason,
    rotationDueSince: date(described.rotationDueSince),
    rotationDueTraceId: described.rotationDueTraceId,
    rotationDueWriterBuild: described.rotationDueWriterBuild,
    createdAt: date(described.createdAt),
    traceId: described.traceId,
    writerBuild: described.writerBuild,
    memberships: described.memberships.map((membership) => ({
      ...membership,
      joinedAt: date(membership.joinedAt),
      leftAt: date(membership.leftAt),
    })),
    epochs: described.epochs.map((epoch) => ({ ...epoch, committedAt: date(epoch.committedAt) })),
    epochGaps: described.epochGaps,
    standing: standing && { ...standing, decidedAt: date(standing.decidedAt), beganAt: date(standing.beganAt) },
  };
}

function deviceRecord(view: DeviceView): DeviceRecord {
  return {
    userId: view.device?.userId ?? '',
    deviceId: view.device?.deviceId ?? '',
    registeredAt: date(view.registeredAt),
    revokedAt: date(view.revokedAt),
    keysMissing: view.keysMissing,
    oneTimePrekeys: view.oneTimePrekeys,
    oneTimeKemPrekeys: view.oneTimeKemPrekeys,
    traceId: view.traceId,
    writerBuild: view.writerBuild,
    revocationTraceId: view.revocationTraceId,
    revocationWriterBuild: view.revocationWriterBuild,
  };
}

function gatewayRecord(view: GatewayView): GatewayRecord {
  return {
    gatewayId: view.gatewayId,
    alive: view.alive,
    entries: Number(view.entries),
    isOwn: view.isOwn,
    streams: Number(view.streams),
    streamsWithoutEntry: Number(view.streamsWithoutEntry),
    lastLossAt: date(view.lastLossAt),
  };
}
