import { fromBinary } from '@bufbuild/protobuf';
import {
  type Conversation,
  ConversationChangedSchema,
  MessageAddedSchema,
  NotificationKind,
  NotificationRequestedSchema,
  RotationDueReason,
} from '@keytrail/contracts';
import {
  connectEvents,
  conversationChanged,
  messageAdded,
  notificationRequested,
  subscribeCore,
} from '@keytrail/events';
import { readSettings } from '@keytrail/settings';
import { startTelemetry } from '@keytrail/telemetry';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { conversationSettings } from '../src/service.ts';
import {
  createdBy,
  creation,
  gateAt,
  type Harness,
  message,
  refusalOf,
  removing,
  rotatedBy,
  startHarness,
} from './harness.ts';

let harness: Harness;
let stop: () => Promise<void>;
const heard: { subject: string; bytes: Uint8Array }[] = [];
let wake = () => {};

beforeAll(async () => {
  harness = await startHarness();
  const config = readSettings(conversationSettings, harness.environment());
  const telemetry = startTelemetry({ service: 'conversation', config });
  const bus = await connectEvents({ config, log: telemetry.log });
  const subscription = subscribeCore(bus, 'keytrail.conversation.v1.>', async (bytes, subject) => {
    heard.push({ subject, bytes });
    wake();
  });
  await bus.connection.flush();
  stop = async () => {
    subscription.stop();
    await bus.close();
    await telemetry.shutdown();
  };
}, 120_000);

afterAll(async () => {
  await stop?.();
  await harness?.[Symbol.asyncDispose]();
});

/** The events about one conversation, in the order in which they were published, once there are `count` of them. */
async function eventsOf(conversationId: string, count: number) {
  for (;;) {
    const events = heard.map(read).filter((event) => event.conversationId === conversationId);
    if (events.length >= count) return events;
    await new Promise<void>((resolve) => {
      wake = resolve;
    });
  }
}

function read({ subject, bytes }: { subject: string; bytes: Uint8Array }) {
  if (subject === conversationChanged.subject) {
    const { conversationId, epoch, rosterVersion, rotationDue } = fromBinary(ConversationChangedSchema, bytes);
    return { conversationId, changed: { epoch, rosterVersion, rotationDue } };
  }
  if (subject === messageAdded.subject) {
    const { conversationId, sequence } = fromBinary(MessageAddedSchema, bytes);
    return { conversationId, added: sequence };
  }
  expect(subject).toBe(notificationRequested.conversation.subject);
  const { notification, userIds } = fromBinary(NotificationRequestedSchema, bytes);
  expect(notification?.traceparent).toMatch(/^00-[0-9a-f]{32}-[0-9a-f]{16}-0[01]$/);
  return { conversationId: notification?.conversationId, notified: [notification?.kind, [...userIds].sort()] };
}

it('tells of a creation, a message, a removal and a rotation, in that order, and asks that the members are notified', async () => {
  const [alice, bob] = [await harness.user(), await harness.user()];
  const both = [alice.userId, bob.userId].sort();
  const { conversation, session } = await createdBy(harness, alice.device, [bob]);
  await alice.device.client.sendMessage(message(alice.device, session, 0n));
  const { conversation: removed } = await alice.device.client.removeMembers(
    removing(alice.device, conversation, [bob.userId]),
  );
  await rotatedBy(harness, alice.device, removed as Conversation);

  const { conversationId } = conversation;
  const none = RotationDueReason.UNSPECIFIED;
  const due = RotationDueReason.MEMBER_REMOVED;
  expect(await eventsOf(conversationId, 9)).toEqual([
    { conversationId, changed: { epoch: 1n, rosterVersion: 1n, rotationDue: none } },
    { conversationId, notified: [NotificationKind.CONVERSATION_CHANGED, both] },
    { conversationId, added: 1n },
    { conversationId, notified: [NotificationKind.MESSAGE_ADDED, both] },
    { conversationId, changed: { epoch: 1n, rosterVersion: 2n, rotationDue: due } },
    { conversationId, notified: [NotificationKind.CONVERSATION_CHANGED, both] },
    { conversationId, notified: [NotificationKind.ROTATION_DUE, [alice.userId]] },
    { conversationId, changed: { epoch: 2n, rosterVersion: 2n, rotationDue: none } },
    { conversationId, notified: [NotificationKind.CONVERSATION_CHANGED, [alice.userId]] },
  ]);
});

it('tells nothing of a creation that was given up', async () => {
  const alice = await harness.user();
  const lost = creation(harness, alice.device, []);
  const gate = gateAt('conversation.before-commit');
  harness.atFaultPoint = gate.at;
  const late = refusalOf(alice.device.client.createConversation(lost.request));
  await gate.reached;
  await harness.reconcile();
  gate.open();
  expect(await late).toMatchObject({ reason: 'SESSION_ABORTED' });
  harness.atFaultPoint = async () => {};
  const { conversation } = await createdBy(harness, alice.device, []);
  await eventsOf(conversation.conversationId, 2);
  expect(await harness.query('SELECT 1 FROM outbox WHERE aggregate = $1', lost.session.conversationId)).toEqual([]);
  expect(heard.map(read).filter((event) => event.conversationId === lost.session.conversationId)).toEqual([]);
});
