import type { MessageInitShape } from '@bufbuild/protobuf';
import type { Client } from '@connectrpc/connect';
import type {
  ConversationService,
  ConversationsWaitingSchema,
  KeysWaitingSchema,
  SessionService,
} from '@keytrail/contracts';

interface AttachingDevice {
  readonly userId: string;
  readonly deviceId: string;
}

/** What waits, or undefined when the peer could not be asked in time. Never throws. */
export type AskWaiting<Waiting> = (device: AttachingDevice, cursor: string) => Promise<Waiting | undefined>;

interface Bounds {
  /** The device is attached without an answer that takes longer. */
  readonly timeoutMs: number;
  /** Those who come past so many questions at a time are attached without, at once. */
  readonly atOnce: number;
  readonly failed: (error: unknown) => void;
}

export function askKeysWaiting(
  session: Pick<Client<typeof SessionService>, 'getKeysWaiting'>,
  bounds: Bounds,
): AskWaiting<MessageInitShape<typeof KeysWaitingSchema>> {
  return bounded(bounds, async ({ userId, deviceId }, cursor, options) => {
    const request = { device: { userId, deviceId }, cursor };
    const { keyOffers, openKeyRequests, changed } = await session.getKeysWaiting(request, options);
    return { offers: keyOffers, openRequests: openKeyRequests, changed };
  });
}

export function askConversationsWaiting(
  conversation: Pick<Client<typeof ConversationService>, 'getConversationsWaiting'>,
  bounds: Bounds,
): AskWaiting<MessageInitShape<typeof ConversationsWaitingSchema>> {
  return bounded(bounds, async ({ userId, deviceId }, cursor, options) => {
    const request = { device: { userId, deviceId }, cursor };
    const { rotationsDue, moreRotationsDue, changed } = await conversation.getConversationsWaiting(request, options);
    return { rotationsDue, moreRotationsDue, changed };
  });
}

function bounded<Waiting>(
  { timeoutMs, atOnce, failed }: Bounds,
  ask: (device: AttachingDevice, cursor: string, options: { timeoutMs: number }) => Promise<Waiting>,
): AskWaiting<Waiting> {
  let asking = 0;
  return async (device, cursor) => {
    if (asking >= atOnce) return undefined;
    asking += 1;
    try {
      return await ask(device, cursor, { timeoutMs });
    } catch (error) {
      failed(error);
      return undefined;
    } finally {
      asking -= 1;
    }
  };
}
