import type { ServiceIdentity } from '@keytrail/auth';
import { ConversationOperatorService, IdentityKeysOperatorService, PresenceOperatorService } from '@keytrail/contracts';
import { connectPeer, type Peer } from '@keytrail/rpc';

/** What the peers show to operators, asked as the service session: for explanations. */
export interface OperatorPeers {
  readonly conversation: Peer<typeof ConversationOperatorService>;
  readonly identityKeys: Peer<typeof IdentityKeysOperatorService>;
  readonly presence: Peer<typeof PresenceOperatorService>;
}

/** Nothing is connected before the first explanation. */
export function connectOperatorPeers(
  config: { peerConversation: string; peerIdentityKeys: string; peerPresence: string; peerTimeoutMs: number },
  identity: ServiceIdentity,
): OperatorPeers & { close(): void } {
  const options = { identity, timeoutMs: config.peerTimeoutMs };
  const conversation = connectPeer(ConversationOperatorService, {
    ...options,
    target: config.peerConversation,
    peer: 'conversation',
  });
  const identityKeys = connectPeer(IdentityKeysOperatorService, {
    ...options,
    target: config.peerIdentityKeys,
    peer: 'identity-keys',
  });
  const presence = connectPeer(PresenceOperatorService, { ...options, target: config.peerPresence, peer: 'presence' });
  return {
    conversation,
    identityKeys,
    presence,
    close() {
      for (const peer of [conversation, identityKeys, presence]) peer.close();
    },
  };
}
