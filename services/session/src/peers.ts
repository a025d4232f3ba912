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

/** Asks the peers at once, presence only where it matters; none of the answers is remembered, as entitlement depends on them. */
export async function askPeers(
  peers: Peers,
  about: {
    readonly conversationId: string;
    readonly sessionId: string;
    readonly requester: DeviceId;
    readonly ranked: readonly DeviceId[];
    readonly withPresence?: boolean;
  },
  log: Logger,
): Promise<PeerAnswers> {
  const { conversationId, sessionId, requester, ranked, withPresence = true } = about;
  const others = holderUsers(ranked).filter((userId) => userId !== requester.userId);
  const [entitlement, deviceLists, online] = await Promise.all([
    answer(
      'conversation',
      peers.conversation.checkEntitlement({ conversationId, sessionId, userIds: [requester.userId, ...others] }),
      log,
    ),
    answer(
      'identity-keys',
      peers.identityKeys.getDevices({
        userIds: [requester.userId, ...others.slice(0, holderListsAtMost)],
        includeRevoked: true,
      }),
      log,
    ),
    ranked.length === 0 || !withPresence
      ? ({ known: true, value: new Set<string>() } as const)
      : answer('presence', listOnline(peers, holderUsers(ranked)), log),
  ]);
  return {
    entitlement,
    deviceLists: deviceLists.known ? { known: true, value: deviceLists.value.deviceLists } : deviceLists,
    online,
  };
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
