import type { MessageInitShape } from '@bufbuild/protobuf';
import { timestampFromDate } from '@bufbuild/protobuf/wkt';
import {
  type AttachResponseSchema,
  type ConversationsWaitingSchema,
  type KeysWaitingSchema,
  PresenceService,
} from '@keytrail/contracts';
import { deviceAttached, type EventBus, publishHint } from '@keytrail/events';
import { deviceCaller, type Rpc, refuse, serverStream } from '@keytrail/rpc';
import { forgetBeginning } from '@keytrail/telemetry';
import { type AskStanding, deviceRevoked, notRegistered } from '../device-standing.ts';
import type { Admission } from '../domain/admission.ts';
import { Attachment } from '../domain/attachment.ts';
import type { Gateway } from '../gateway.ts';
import { orRedisAway } from '../redis-away.ts';
import type { AskWaiting } from '../waiting.ts';

interface Parts {
  readonly gateway: Gateway;
  readonly bus: EventBus;
  readonly ask: AskStanding;
  readonly keysWaiting: AskWaiting<MessageInitShape<typeof KeysWaitingSchema>>;
  readonly conversationsWaiting: AskWaiting<MessageInitShape<typeof ConversationsWaitingSchema>>;
  readonly admission: Admission;
  /** What `admission` allows, in words. */
  readonly attachLimit: string;
  /** When the next one of a draining replica's devices is to attach elsewhere, in ms from now. */
  readonly nextReturn: () => number;
  readonly heartbeatIntervalMs: number;
  readonly maxAttachments: number;
  readonly maxQueuedNotifications: number;
}

/** For whoever is refused for the number of streams, or for not reading its own. */
const retryAfterMs = 500;

export function attach(parts: Parts): Rpc {
  const { gateway, bus, ask, admission, heartbeatIntervalMs } = parts;
  return serverStream(PresenceService.method.attach, {
    allow: ['device'],
    async *handle(request, call): AsyncGenerator<MessageInitShape<typeof AttachResponseSchema>> {
      const { userId, deviceId, expiresAtMs } = deviceCaller(call);
      if (gateway.attachments.size >= parts.maxAttachments) {
        throw refuse('LIMIT_EXCEEDED', 'this replica holds as many streams as it may', {
          metadata: { limit: String(parts.maxAttachments), scope: 'attachments' },
          retryAfterMs,
        });
      }
      const admitted = admission.enter(performance.now());
      if (!admitted.admitted) {
        throw refuse('LIMIT_EXCEEDED', 'many devices attach to this replica now', {
          metadata: { limit: parts.attachLimit, scope: 'attaches' },
          retryAfterMs: admitted.retryAfterMs,
        });
      }
      let attaching = true;
      const greetedOrGone = () => {
        if (attaching) admission.leave();
        attaching = false;
      };
      const attachment = new Attachment({
        userId,
        deviceId,
        connectionId: gateway.newConnection(),
        counter: request.attachCounter,
        attachedAt: new Date(),
        tokenExpiresAtMs: expiresAtMs ?? Number.POSITIVE_INFINITY,
        nowMs: performance.now(),
        maxQueued: parts.maxQueuedNotifications,
      });
      const drain = () => attachment.end('draining');
      const superseded = () =>
        refuse('CONNECTION_SUPERSEDED', 'a newer attachment of this device is live', {
          metadata: { connection_id: attachment.connectionId },
        });
      try {
        const older = gateway.attachments.of(userId, deviceId);
        if (older && !older.ended && older.counter >= attachment.counter) throw superseded();
        // Before the entry says online, the queue must be able to take what is sent to it.
        gateway.attachments.put(attachment);
        if (!(await orRedisAway(() => gateway.assert(attachment)))) throw superseded();
        // Only now, with the entry in place: a revocation is either in the answer, or its event finds the entry.
        const follows = gateway.followsRevocations;
        const [standing, keysWaiting, conversationsWaiting] = await Promise.all([
          ask(attachment),
          parts.keysWaiting(attachment, request.sessionCursor),
          parts.conversationsWaiting(attachment, request.conversationCursor),
        ]);
        if (standing.kind === 'refused') throw standing.refusal;
        attachment.standing = standing.kind === 'active' && follows ? 'known' : 'unknown';
        greetedOrGone();
        yield {
          message: {
            case: 'greeting',
            value: {
              connectionId: attachment.connectionId,
              heartbeatIntervalMs,
              attachedAt: timestampFromDate(attachment.attachedAt),
              ...(standing.kind === 'active' && standing.prekeyStatus && { prekeyStatus: standing.prekeyStatus }),
              ...(keysWaiting && { keysWaiting }),
              ...(conversationsWaiting && { conversationsWaiting }),
            },
          },
        };
        void publishHint(bus, deviceAttached, {
          device: { userId, deviceId },
          attachedAt: timestampFromDate(attachment.attachedAt),
        }).then(forgetBeginning);

        call.draining.addEventListener('abort', drain, { once: true });
        if (call.draining.aborted) drain();
        for (;;) {
          const notification = await attachment.next(call.signal);
          if (!notification) break;
          yield { message: { case: 'notification', value: notification } };
        }
        if (attachment.ended === 'draining')
          yield { message: { case: 'draining', value: { reconnectAfterMs: parts.nextReturn() } } };
        if (attachment.ended === 'superseded') throw superseded();
        if (attachment.ended === 'revoked') throw deviceRevoked(deviceId);
        if (attachment.ended === 'not-registered') throw notRegistered(deviceId);
        if (attachment.ended === 'token-expired') {
          throw refuse('TOKEN_INVALID', 'the token that opened the stream has expired; attach again with a fresh one', {
            metadata: { problem: 'expired' },
          });
        }
        if (attachment.ended === 'overflow') {
          throw refuse('LIMIT_EXCEEDED', 'the device does not read its notifications; attach again and pull', {
            metadata: { limit: String(parts.maxQueuedNotifications), scope: 'queued_notifications' },
            retryAfterMs,
          });
        }
        if (attachment.ended === 'heartbeats-missed') {
          throw refuse('CONNECTION_UNKNOWN', 'three heartbeats were missed', {
            metadata: { connection_id: attachment.connectionId },
          });
        }
      } finally {
        greetedOrGone();
        call.draining.removeEventListener('abort', drain);
        await gateway
          .release(attachment)
          .catch((error: unknown) => call.log.warn({ err: error }, 'the entry of a device that left was not removed'));
      }
    },
  });
}
