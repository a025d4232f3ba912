import { type Authenticator, authSettings, createAuthenticator } from '@keytrail/auth';
import { ConversationService, type DeviceRef, SessionService } from '@keytrail/contracts';
import { type RunningServer, refuse, serverSettings, startServer, unary } from '@keytrail/rpc';
import { readSettings } from '@keytrail/settings';
import { startTelemetry, telemetrySettings } from '@keytrail/telemetry';

/** The services that identity-keys asks, as small real servers whose answers a test decides. */
export interface StandIns {
  /** The settings that lead to them. */
  readonly targets: Readonly<Record<string, string>>;
  /** The users share a conversation from now on. */
  share(...userIds: string[]): void;
  /** The users leave all conversations that they share with anybody. */
  part(...userIds: string[]): void;
  /** What conversation was asked, in order. */
  readonly asked: { readonly userId: string; readonly otherUserIds: readonly string[] }[];
  /** While it is set, conversation answers UNAVAILABLE. */
  conversationAway: boolean;
  /** Runs after conversation has looked, and its answer waits for it. */
  beforeAnswering: () => Promise<unknown> | unknown;
  /** Open key requests: who wants the key, and to whom it was offered, as `user/device`. */
  readonly keyRequests: Map<
    string,
    { readonly requester: Pick<DeviceRef, 'userId' | 'deviceId'>; readonly offeredTo: string }
  >;
  /** How often session was asked. */
  offersChecked: number;
  stop(): Promise<void>;
}

export async function startStandIns(environment: Readonly<Record<string, string>>): Promise<StandIns> {
  const config = readSettings({ ...serverSettings, ...authSettings, ...telemetrySettings }, environment);
  const telemetry = startTelemetry({ service: 'conversation', config });
  const authenticator: Authenticator = createAuthenticator(config);
  const conversations: { readonly members: Set<string>; readonly ever: ReadonlySet<string> }[] = [];
  const start = (
    service: 'conversation' | 'session',
    options: Pick<Parameters<typeof startServer>[0], 'services' | 'rpcs'>,
  ) => startServer({ service, config, authenticator, telemetry, ...options });

  const standIns: StandIns = {
    targets: {},
    share: (...userIds) => void conversations.push({ members: new Set(userIds), ever: new Set(userIds) }),
    part(...userIds) {
      for (const { members } of conversations) for (const userId of userIds) members.delete(userId);
    },
    asked: [],
    conversationAway: false,
    beforeAnswering: () => {},
    keyRequests: new Map(),
    offersChecked: 0,
    async stop() {
      await Promise.all([conversation.stop(), session.stop()]);
      await telemetry.shutdown();
    },
  };
  const conversation = await start('conversation', {
    services: [ConversationService],
    rpcs: [
      unary(ConversationService.method.listSharedUsers, {
        allow: ['service:identity-keys'],
        async handle({ userId, otherUserIds, includeFormerMembers }) {
          standIns.asked.push({ userId, otherUserIds });
          if (standIns.conversationAway) throw refuse('SHUTTING_DOWN', 'away', { retryAfterMs: 500 });
          const shared = conversations.filter(({ members }) => members.has(userId));
          const userIds = otherUserIds.filter((other) =>
            shared.some(({ members, ever }) => (includeFormerMembers ? ever : members).has(other)),
          );
          await standIns.beforeAnswering();
          return { userIds };
        },
      }),
    ],
  });
  const session = await start('session', {
    services: [SessionService],
    rpcs: [
      unary(SessionService.method.checkOffer, {
        allow: ['service:identity-keys'],
        handle({ keyRequestId, holder }) {
          standIns.offersChecked += 1;
          const request = standIns.keyRequests.get(keyRequestId);
          if (request === undefined || request.offeredTo !== `${holder?.userId}/${holder?.deviceId}`) return {};
          return { offered: true, requester: { ...request.requester } };
        },
      }),
    ],
  });
  Object.assign(standIns.targets, {
    KEYTRAIL_PEER_CONVERSATION: targetOf(conversation),
    KEYTRAIL_PEER_SESSION: targetOf(session),
  });
  return standIns;
}

function targetOf({ grpcPort }: RunningServer): string {
  return `127.0.0.1:${grpcPort}`;
}
