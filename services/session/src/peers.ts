import type { ServiceIdentity } from '@keytrail/auth';
import {
  type CheckEntitlementResponse,
  ConversationService,
  type DeviceList,
  IdentityKeysService,
  PresenceService,
} from '@keytrail/contracts';
import { connectPeer, type Peer } from '@keytrail/rpc';
import type { Logger } from '@keytrail/telemetry';
import { type DeviceId, deviceKey } from './domain/device.ts';
import type { Answer, PeerName } from './domain/explain-miss.ts';
import { holderUsers } from './domain/holders.ts';

export interface Peers {
  readonly conversation: Peer<typeof ConversationService>;
  readonly identityKeys: Peer<typeof IdentityKeysService>;
  readonly presence: Peer<typeof PresenceService>;
}

export function connectPeers(
  config: { peerConversation: string; peerIdentityKeys: string; peerPresence: string; peerTimeoutMs: number },
  identity: ServiceIdentity,
): Peers & { close(): void } {
  const timeoutMs = config.peerTimeoutMs;
  const conversation = connectPeer(ConversationService, {
    target: config.peerConversation,
    peer: 'conversation',
    identity,
    timeoutMs,
  });
  const identityKeys = connectPeer(IdentityKeysService, {
    target: config.peerIdentityKeys,
    peer: 'identity-keys',
    identity,
    timeoutMs,
  });
  const presence = connectPeer(PresenceService, {
    target: config.peerPresence,
    peer: 'presence',
    identity,
    timeoutMs,
  });
  return {
    conversation,
    identityKeys,
    presence,
    close() {
      for (const peer of [conversation, identityKeys, presence]) peer.close();
    },
  };
}

/** What the peers said about one requester and the holders of one session. */
export interface PeerAnswers {
  readonly entitlement: Answer<CheckEntitlementResponse>;
  readonly deviceLists: Answer<readonly DeviceList[]>;
  /** Keys of the devices that are online, by deviceKey. */
  readonly online: Answer<ReadonlySet<string>>;
}

/** Device lists carry public keys of 1.2 KB each: of a large group, only the first ranked holders' are worth the bytes. */
const holderListsAtMost = 16;

/** What one call to a peer asks about at most, where many sessions are asked about at once. */
const sessionsPerCall = 500;
const usersPerCall = 10_000;
const listsPerCall = 50;
const onlinePerCall = 1_000;

export interface AskedSession {
  readonly conversationId: string;
  readonly sessionId: string;
  readonly ranked: readonly DeviceId[];
}

/**
 * Asks the peers about sessions of one requester, all at once; none of the answers is remembered, as entitlement depends on them. In the order of
 * the sessions.
 */
export async function askPeers(
  peers: Peers,
  requester: DeviceId,
  sessions: readonly AskedSession[],
  log: Logger,
): Promise<PeerAnswers[]> {
  const users = sessions.map(({ ranked }) => [
    requester.userId,
    ...holderUsers(ranked).filter((userId) => userId !== requester.userId),
  ]);
  const listed = users.flatMap((each) => each.slice(0, sessions.length === 1 ? holderListsAtMost + 1 : 2));
  const [entitlements, deviceLists, online] = await Promise.all([
    askEntitlements(
      peers,
      sessions.map((session, place) => ({ ...session, userIds: users[place] ?? [] })),
      log,
    ),
    askDeviceLists(peers, listed, log),
    askOnline(
      peers,
      sessions.flatMap(({ ranked }) => holderUsers(ranked)),
      log,
    ),
  ]);
  return sessions.map((_, place) => ({ entitlement: ofSession(entitlements, place), deviceLists, online }));
}

function ofSession(
  entitlements: Answer<readonly CheckEntitlementResponse[]>,
  place: number,
): Answer<CheckEntitlementResponse> {
  if (!entitlements.known) return entitlements;
  const value = entitlements.value[place];
  if (!value) throw new Error('an entitlement is missing');
  return { known: true, value };
}

export interface AskedEntitlement {
  readonly conversationId: string;
  readonly sessionId: string;
  readonly userIds: readonly string[];
}

/** What the users of each session may have of it, in the order of the sessions, each of which stands once. */
export function askEntitlements(
  peers: Peers,
  sessions: readonly AskedEntitlement[],
  log: Logger,
): Promise<Answer<readonly CheckEntitlementResponse[]>> {
  const checks = sessions.map(({ conversationId, sessionId, userIds }) => ({
    conversationId,
    sessionId,
    userIds: [...userIds],
  }));
  const [only, ...more] = checks;
  if (!only) return Promise.resolve({ known: true, value: [] });
  const asked =
    more.length === 0
      ? peers.conversation.checkEntitlement(only).then((one) => [one])
      : Promise.all(inCalls(checks).map((part) => peers.conversation.checkEntitlements({ checks: part }))).then(
          (parts) => parts.flatMap(({ answers }) => answers),
        );
  return answer('conversation', asked, log);
}

/** Cut into what one call may ask. */
function inCalls<T extends { readonly userIds: readonly string[] }>(checks: readonly T[]): T[][] {
  const calls: T[][] = [];
  let users = usersPerCall;
  for (const check of checks) {
    const last = calls.at(-1);
    users += check.userIds.length;
    if (last && last.length < sessionsPerCall && users <= usersPerCall) last.push(check);
    else {
      calls.push([check]);
      users = check.userIds.length;
    }
  }
  return calls;
}

export function askDeviceLists(
  peers: Peers,
  userIds: readonly string[],
  log: Logger,
): Promise<Answer<readonly DeviceList[]>> {
  const calls = chunks([...new Set(userIds)], listsPerCall).map((some) =>
    peers.identityKeys.getDevices({ userIds: some, includeRevoked: true }),
  );
  const asked = Promise.all(calls).then((parts) => parts.flatMap(({ deviceLists }) => deviceLists));
  return answer('identity-keys', asked, log);
}

function askOnline(peers: Peers, userIds: readonly string[], log: Logger): Promise<Answer<ReadonlySet<string>>> {
  const calls = chunks([...new Set(userIds)], onlinePerCall).map((some) => listOnline(peers, some));
  const asked = Promise.all(calls).then((parts) => new Set(parts.flatMap((part) => [...part])));
  return answer('presence', asked, log);
}

function chunks<T>(all: readonly T[], size: number): T[][] {
  return Array.from({ length: Math.ceil(all.length / size) }, (_, n) => all.slice(n * size, (n + 1) * size));
}

async function listOnline(peers: Peers, userIds: string[]): Promise<ReadonlySet<string>> {
  const { devices } = await peers.presence.listOnline({ userIds });
  return new Set(devices.flatMap(({ device }) => (device ? [deviceKey(device)] : [])));
}

async function answer<T>(peer: PeerName, asked: Promise<T>, log: Logger): Promise<Answer<T>> {
  try {
    return { known: true, value: await asked };
  } catch (err) {
    log.warn({ err, peer }, 'a peer could not be asked');
    return { known: false, peer };
  }
}

export function entitledUsers(response: CheckEntitlementResponse): ReadonlySet<string> {
  return new Set(response.entitlements.flatMap(({ entitled, userId }) => (entitled ? [userId] : [])));
}

/** Keys of the devices that are revoked, as far as the lists tell. */
export function revokedDevices(lists: readonly DeviceList[]): ReadonlySet<string> {
  return new Set(
    lists.flatMap(({ devices }) =>
      devices.flatMap((device) => (device.revokedAt === undefined ? [] : [deviceKey(device)])),
    ),
  );
}

export function findDevice(lists: readonly DeviceList[], { userId, deviceId }: DeviceId) {
  return lists
    .find((list) => list.userId === userId)
    ?.devices.find((device) => device.deviceId === deviceId && device.userId === userId);
}
