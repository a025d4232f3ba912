import { attr, contextFromTraceparent, currentTraceparent, SpanKind, withSpan } from '@keytrail/telemetry';
import { headers, type Msg, type MsgHdrs } from '@nats-io/nats-core';
import type { EventBus } from './bus.ts';
import { eventHeader } from './publish.ts';

export interface CoreOptions {
  /** Names the spans when the subject holds ids, e.g. `keytrail.gateway.{gateway}.deliver`. */
  readonly template?: string;
  /** Replicas that subscribe with the same queue share the messages. */
  readonly queue?: string;
}

function attributes(template: string, operation: 'publish' | 'process') {
  return {
    [attr.messagingSystem]: 'nats',
    [attr.messagingDestination]: template,
    [attr.messagingOperation]: operation,
    [attr.messagingOperationType]: operation === 'publish' ? 'send' : 'process',
  };
}

function traced(): { headers?: MsgHdrs } {
  const traceparent = currentTraceparent();
  if (!traceparent) return {};
  const sent = headers();
  sent.set(eventHeader.traceparent, traceparent);
  return { headers: sent };
}

/** Subscribes to a subject of core NATS: at most once, only while connected. The sender's trace goes on in the handler. */
export function subscribeCore(
  bus: EventBus,
  subject: string,
  handle: (bytes: Uint8Array, subject: string) => Promise<void>,
  options?: CoreOptions,
): { stop(): void } {
  return listen(bus, subject, (message) => handle(message.data, message.subject), options);
}

/** Answers what others ask with `requestCore`; when `answer` throws they get no answer. */
export function answerCore(
  bus: EventBus,
  subject: string,
  answer: (bytes: Uint8Array, subject: string) => Promise<Uint8Array>,
  options?: CoreOptions,
): { stop(): void } {
  const handle = async (message: Msg) => void message.respond(await answer(message.data, message.subject));
  return listen(bus, subject, handle, options);
}

function listen(
  bus: EventBus,
  subject: string,
  handle: (message: Msg) => Promise<void>,
  { template = subject, queue }: CoreOptions = {},
): { stop(): void } {
  const subscription = bus.connection.subscribe(subject, {
    ...(queue && { queue }),
    callback(error, message) {
      if (error) {
        bus.log.warn({ err: error, subject: template }, 'a subscription reported an error');
        return;
      }
      const parent = contextFromTraceparent(message.headers?.get(eventHeader.traceparent) ?? '');
      const settings = { kind: SpanKind.CONSUMER, parent, attributes: attributes(template, 'process') };
      withSpan(`process ${template}`, settings, async () => {
        try {
          await handle(message);
        } catch (failure) {
          bus.log.warn({ err: failure, subject: template }, 'a message could not be handled');
          throw failure;
        }
      }).catch(() => {});
    },
  });
  return { stop: () => subscription.unsubscribe() };
}

/** Publishes on core NATS; nobody may be listening. */
export function publishCore(
  bus: EventBus,
  subject: string,
  bytes: Uint8Array,
  { template = subject }: CoreOptions = {},
): void {
  withSpan(`publish ${template}`, { kind: SpanKind.PRODUCER, attributes: attributes(template, 'publish') }, () =>
    bus.connection.publish(subject, bytes, traced()),
  );
}

/** Asks whoever subscribes, and returns the first answer. Throws when nobody does, or nobody answers in time. */
export function requestCore(
  bus: EventBus,
  subject: string,
  bytes: Uint8Array,
  { template = subject, timeoutMs = 1000 }: CoreOptions & { timeoutMs?: number } = {},
): Promise<Uint8Array> {
  const settings = { kind: SpanKind.CLIENT, attributes: attributes(template, 'publish') };
  return withSpan(`request ${template}`, settings, async () => {
    return (await bus.connection.request(subject, bytes, { timeout: timeoutMs, ...traced() })).data;
  });
}
