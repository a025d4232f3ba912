import { randomUUID } from 'node:crypto';
import { fromBinary } from '@bufbuild/protobuf';
import {
  type Conversation,
  NotificationKind,
  NotificationRequestedSchema,
  RotationDueReason,
} from '@keytrail/contracts';
import {
  connectEvents,
  deviceAttached,
  type EventBus,
  notificationRequested,
  publishHint,
  subscribeCore,
} from '@keytrail/events';
import { readSettings } from '@keytrail/settings';
import { startTelemetry, type Telemetry } from '@keytrail/telemetry';
import { afterAll, afterEach, beforeAll, describe, expect, it, vi } from 'vitest';
import { type ConversationServer, conversationSettings, createConversationServer, readConfig } from '../src/service.ts';
import { saveRotationLook } from '../src/store/rotations.ts';
import {
  createdBy,
  type Harness,
  message,
  refusalOf,
  removing,
  rotatedBy,
  rotation,
  startHarness,
  type TestDevice,
  type TestUser,
} from './harness.ts';

const { AGE, MESSAGE_COUNT, REQUESTED, MEMBER_REMOVED, UNSPECIFIED } = RotationDueReason;

/** Until it holds; a busy machine may take its time. */
function eventually<T>(holds: () => T | Promise<T>): Promise<T> {
  return vi.waitFor(holds, { timeout: 15_000 });
}

let harness: Harness;
let bus: EventBus;
let telemetry: Telemetry;
let stop: () => Promise<void>;
const asked: { conversationId: string; sessionId: string; devices: string[] }[] = [];

beforeAll(async () => {
  // Time passes where a test says so, by the database's rows: no deadline is reached by itself.
  harness = await startHarness({
    KEYTRAIL_ROTATION_MAX_MESSAGES: '3',
    KEYTRAIL_ROTATION_SWEEP_MS: '20',
    KEYTRAIL_ROTATION_GRACE_MS: '0',
    KEYTRAIL_ROTATION_ASK_MS: '3600000',
    KEYTRAIL_ROTATION_RETRY_MS: '3600000',
    KEYTRAIL_REVOCATIONS_PULL_MS: '50',
  });
  const config = readSettings(conversationSettings, harness.environment());
  telemetry = startTelemetry({ service: 'conversation', config });
  bus = await connectEvents({ config, log: telemetry.log });
  const subscription = subscribeCore(bus, notificationRequested.conversation.subject, async (bytes) => {
    const { devices, notification } = fromBinary(NotificationRequestedSchema, bytes);
    if (notification?.kind !== NotificationKind.ROTATION_ASKED) return;
    const { conversationId, sessionId } = notification;
    asked.push({ conversationId, sessionId, devices: devices.map(name) });
  });
  await bus.connection.flush();
  stop = async () => {
    subscription.stop();
    await bus.close();
    await telemetry.shutdown();
  };
}, 120_000);

afterEach(() => harness.online.clear());

afterAll(async () => {
  await stop?.();
  await harness?.[Symbol.asyncDispose]();
});

function name({ userId, deviceId }: { readonly userId: string; readonly deviceId: string }): string {
  return `${userId} ${deviceId}`;
}

async function group(members: number) {
  const [alice, ...others] = (await Promise.all(Array.from({ length: members }, () => harness.user()))) as [
    TestUser,
    ...TestUser[],
  ];
  const made = await createdBy(harness, alice.device, others);
  return { alice, others, ...made };
}

async function becomesDue({ conversation, alice }: { conversation: Conversation; alice: TestUser }): Promise<void> {
  const { conversationId, epoch } = conversation;
  await alice.device.client.requestRotation({ requestId: randomUUID(), conversationId, expectedEpoch: epoch });
}

function leave({ userId, device }: TestUser, conversation: Conversation) {
  return device.client.removeMembers(removing(device, conversation, [userId]));
}

async function dueOf({ conversationId }: Conversation, by: TestUser): Promise<RotationDueReason | undefined> {
  return (await by.device.client.getConversation({ conversationId })).conversation?.rotationDue;
}

async function askedIn({ conversationId }: Conversation, by: TestDevice) {
  const { askedDevice } = await by.client.getRotation({ conversationId });
  return askedDevice ? name(askedDevice) : undefined;
}

/** As if the time of who is asked were over. */
async function lapse({ conversationId }: Conversation): Promise<void> {
  await harness.query(
    `WITH over AS (
       UPDATE rotation_asks SET asked_until = now() - interval '1 ms', asked_at = now() - interval '2 ms'
       WHERE conversation_id = $1 AND ended_at IS NULL RETURNING 1)
     UPDATE rotations_due SET next_attempt_at = now(), version = version + 1
     WHERE conversation_id = $1 AND EXISTS (SELECT FROM over)`,
    conversationId,
  );
}

/** Looks in a row that found nobody. */
async function waits({ conversationId }: Conversation): Promise<number | undefined> {
  const [row] = await harness.query<{ waits: number }>(
    'SELECT waits FROM rotations_due WHERE conversation_id = $1',
    conversationId,
  );
  return row?.waits;
}

describe('a rotation becomes due', () => {
  it('by the number of messages under the session, and says so in every answer', async () => {
    const { alice, others, conversation, session } = await group(2);
    const { conversationId } = conversation;
    const [bob] = others as [TestUser];
    const send = (counter: bigint) => alice.device.client.sendMessage(message(alice.device, session, counter));
    expect(await send(0n)).toMatchObject({ sequence: 1n, rotationDue: UNSPECIFIED });
    expect(await send(1n)).toMatchObject({ sequence: 2n, rotationDue: UNSPECIFIED });
    expect(await send(2n)).toMatchObject({ sequence: 3n, rotationDue: MESSAGE_COUNT });

    const own = bob.device.client;
    expect(await own.listMessages({ conversationId })).toMatchObject({ rotationDue: MESSAGE_COUNT });
    expect(await dueOf(conversation, bob)).toBe(MESSAGE_COUNT);
    expect((await own.listConversations({})).conversations[0]?.rotationDue).toBe(MESSAGE_COUNT);
    expect((await own.listChanges({})).changes[0]?.rotationDue).toBe(MESSAGE_COUNT);
    const due = await own.getRotation({ conversationId });
    expect(due.conversation?.rotationDue).toBe(MESSAGE_COUNT);
    expect(due.dueSince).toBeDefined();

    // It refuses nothing, and the count begins anew with the epoch.
    expect(await send(3n)).toMatchObject({ sequence: 4n, rotationDue: MESSAGE_COUNT });
    const next = await rotatedBy(harness, bob.device, conversation);
    expect(next.conversation.rotationDue).toBe(UNSPECIFIED);
    const sendNext = (counter: bigint) => own.sendMessage(message(bob.device, next.session, counter));
    expect(await sendNext(0n)).toMatchObject({ sequence: 5n, rotationDue: UNSPECIFIED });
    expect(await sendNext(1n)).toMatchObject({ rotationDue: UNSPECIFIED });
    expect(await sendNext(2n)).toMatchObject({ sequence: 7n, rotationDue: MESSAGE_COUNT });
  });

  it('once by the number of messages, however many send at the same time, and the sequence stays without gaps', async () => {
    const { alice, others, conversation, session } = await group(2);
    const [bob] = others as [TestUser];
    const sent = await Promise.all(
      Array.from({ length: 40 }, (_, index) => {
        const sender = index % 2 === 0 ? alice.device : bob.device;
        return sender.client.sendMessage(message(sender, session, BigInt(index)));
      }),
    );
    const due = sent.filter(({ rotationDue }) => rotationDue === MESSAGE_COUNT).map(({ sequence }) => sequence);
    expect(due.toSorted((a, b) => Number(a - b))).toEqual(Array.from({ length: 38 }, (_, index) => BigInt(index + 3)));
    const log = await bob.device.client.listMessages({ conversationId: conversation.conversationId });
    expect(log.messages.map(({ sequence }) => sequence)).toEqual(sent.map((_, index) => BigInt(index + 1)));
    const rows = await harness.query(
      'SELECT epoch, version FROM rotations_due WHERE conversation_id = $1',
      conversation.conversationId,
    );
    expect(rows).toMatchObject([{ epoch: 1n }]);
  });

  it('by the age of the session when a message is sent under it, and a new epoch begins anew', async () => {
    const { alice, conversation, session } = await group(2);
    const { client } = alice.device;
    expect(await client.sendMessage(message(alice.device, session, 0n))).toMatchObject({ rotationDue: UNSPECIFIED });
    await harness.query(
      `UPDATE conversations SET epoch_began_at = now() - interval '8 days' WHERE conversation_id = $1`,
      conversation.conversationId,
    );
    // A session that nobody writes under is left as it is.
    expect(await dueOf(conversation, alice)).toBe(UNSPECIFIED);
    expect(await client.sendMessage(message(alice.device, session, 1n))).toMatchObject({
      sequence: 2n,
      rotationDue: AGE,
    });
    expect(await dueOf(conversation, alice)).toBe(AGE);
    const { session: second } = await rotatedBy(harness, alice.device, conversation);
    expect(await client.sendMessage(message(alice.device, second, 0n))).toMatchObject({
      sequence: 3n,
      rotationDue: UNSPECIFIED,
    });
  });

  it('for the weightiest reason: the count replaces the age, and nothing light replaces a removal', async () => {
    const { alice, others, conversation, session } = await group(3);
    const [bob, carol] = others as [TestUser, TestUser];
    const { conversationId } = conversation;
    await harness.query('UPDATE conversations SET rotation_due = 5 WHERE conversation_id = $1', conversationId);
    for (const counter of [0n, 1n, 2n]) await bob.device.client.sendMessage(message(bob.device, session, counter));
    expect(await dueOf(conversation, alice)).toBe(MESSAGE_COUNT);
    await becomesDue({ conversation, alice });
    expect(await dueOf(conversation, alice)).toBe(REQUESTED);
    await bob.device.client.sendMessage(message(bob.device, session, 3n));
    expect(await dueOf(conversation, alice)).toBe(REQUESTED);
    await leave(carol, conversation);
    expect(await dueOf(conversation, alice)).toBe(MEMBER_REMOVED);
    await becomesDue({ conversation, alice });
    expect(await dueOf(conversation, alice)).toBe(MEMBER_REMOVED);
  });
});

describe('a rotation that is due', () => {
  it('is asked of one online device, of who wrote last before the others, with all that it needs', async () => {
    const made = await group(4);
    const { alice, others, conversation, session } = made;
    const [bob, carol, dave] = others as [TestUser, TestUser, TestUser];
    const { conversationId, sessionId } = conversation;
    const tablet = await harness.addDevice(dave);
    harness.revoke(tablet);
    await carol.device.client.sendMessage(message(carol.device, session, 0n));
    for (const { device } of [dave, bob, carol]) harness.online.add(device);
    await becomesDue(made);
    await eventually(async () => expect(await askedIn(conversation, alice.device)).toBe(name(carol.device)));
    await eventually(() => expect(asked).toContainEqual({ conversationId, sessionId, devices: [name(carol.device)] }));

    const told = await carol.device.client.getRotation({ conversationId });
    const userIds = conversation.members.map(({ userId }) => userId);
    expect(told.recipients.map(name)).toEqual(harness.activeDevices(userIds).map(name));
    expect(told.recipients.map(name)).not.toContain(name(tablet));
    expect(told.deviceLists).toMatchObject(
      userIds.map((userId) => ({ userId, version: harness.deviceListVersion(userId) })),
    );
    expect(told.askedUntil).toBeDefined();
    const { request } = rotation(harness, carol.device, told.conversation as Conversation, {
      recipients: told.recipients,
    });
    const rotated = await carol.device.client.rotateSession(request);
    expect(rotated.conversation).toMatchObject({ epoch: 2n, rotationDue: UNSPECIFIED });
    const after = await alice.device.client.getRotation({ conversationId });
    expect([after.dueSince, after.askedDevice, after.askedUntil]).toEqual([undefined, undefined, undefined]);
    expect(await harness.query('SELECT FROM rotation_asks WHERE conversation_id = $1', conversationId)).toEqual([]);
  });

  it('goes on to the next device when one declines, at once, and when one does not answer', async () => {
    const made = await group(3);
    const { alice, others, conversation } = made;
    const [bob, carol] = others as [TestUser, TestUser];
    const { conversationId, epoch: expectedEpoch } = conversation;
    for (const { device } of [alice, bob, carol]) harness.online.add(device);
    await becomesDue(made);
    // Nobody wrote: who made the session is likelier than the others.
    await eventually(async () => expect(await askedIn(conversation, bob.device)).toBe(name(alice.device)));
    await bob.device.client.declineRotation({ conversationId, expectedEpoch });
    await alice.device.client.declineRotation({ conversationId, expectedEpoch: 2n });
    expect(await askedIn(conversation, bob.device)).toBe(name(alice.device));

    await alice.device.client.declineRotation({ conversationId, expectedEpoch });
    const second = await eventually(async () => {
      const now = await askedIn(conversation, alice.device);
      expect([name(bob.device), name(carol.device)]).toContain(now);
      return now;
    });
    await lapse(conversation);
    const third = name(second === name(bob.device) ? carol.device : bob.device);
    await eventually(async () => expect(await askedIn(conversation, alice.device)).toBe(third));

    // All were asked: none is asked again before its time, then the one who was asked longest ago.
    await lapse(conversation);
    await eventually(async () => expect(await waits(conversation)).toBe(1));
    expect(await askedIn(conversation, alice.device)).toBeUndefined();
    await harness.query(
      `UPDATE rotation_asks SET asked_at = now() - interval '2 hours', asked_until = now() - interval '1 hour'
       WHERE conversation_id = $1 AND user_id = $2`,
      conversationId,
      alice.userId,
    );
    await harness.query('UPDATE rotations_due SET next_attempt_at = now() WHERE conversation_id = $1', conversationId);
    await eventually(async () => expect(await askedIn(conversation, bob.device)).toBe(name(alice.device)));
  });

  it('waits when nobody is online, and goes on when a device attaches', async () => {
    const made = await group(2);
    const { alice, others, conversation } = made;
    const [bob] = others as [TestUser];
    await becomesDue(made);
    await eventually(async () => expect(await waits(conversation)).toBe(1));
    harness.online.add(bob.device);
    const stranger = await harness.user();
    for (const { userId, deviceId } of [stranger.device, bob.device])
      await publishHint(bus, deviceAttached, { device: { userId, deviceId } });
    await eventually(async () => expect(await askedIn(conversation, alice.device)).toBe(name(bob.device)));
  });

  it('is never asked of a revoked device, and of another one when the one that is asked is revoked', async () => {
    const made = await group(2);
    const { alice, others, conversation } = made;
    const [bob] = others as [TestUser];
    harness.online.add(alice.device).add(bob.device);
    await becomesDue(made);
    await eventually(async () => expect(await askedIn(conversation, bob.device)).toBe(name(alice.device)));
    harness.revoke(alice.device);
    harness.revocations.push(alice.device);
    await eventually(async () => expect(await askedIn(conversation, bob.device)).toBe(name(bob.device)));
    await harness.query(
      `UPDATE rotation_asks SET asked_at = now() - interval '9 days', asked_until = now() - interval '8 days'
       WHERE conversation_id = $1 AND user_id = $2`,
      conversation.conversationId,
      alice.userId,
    );
    await lapse(conversation);
    await eventually(async () => expect(await waits(conversation)).toBe(1));
  });

  it('is asked of another device at once when the one that is asked leaves, though it was due for a removal already', async () => {
    const made = await group(4);
    const { alice, others, conversation, session } = made;
    const [bob, carol, dave] = others as [TestUser, TestUser, TestUser];
    await carol.device.client.sendMessage(message(carol.device, session, 0n));
    for (const { device } of [alice, bob, carol, dave]) harness.online.add(device);
    await leave(dave, conversation);
    await eventually(async () => expect(await askedIn(conversation, bob.device)).toBe(name(carol.device)));
    const { conversation: now } = await carol.device.client.getConversation({
      conversationId: conversation.conversationId,
    });
    await leave(carol, now as Conversation);
    await eventually(async () => expect(await askedIn(conversation, bob.device)).toBe(name(alice.device)));
  });

  it('is asked of another device at once when the one that is asked is revoked, though it was due for a removal already', async () => {
    const made = await group(3);
    const { alice, others, conversation, session } = made;
    const [bob, carol] = others as [TestUser, TestUser];
    const tablet = await harness.addDevice(alice);
    await tablet.client.sendMessage(message(tablet, session, 0n));
    for (const device of [tablet, bob.device]) harness.online.add(device);
    await leave(carol, conversation);
    await eventually(async () => expect(await askedIn(conversation, bob.device)).toBe(name(tablet)));
    harness.revoke(tablet);
    harness.revocations.push(tablet);
    await eventually(async () => expect(await askedIn(conversation, alice.device)).toBe(name(bob.device)));
  });

  it('is asked of nobody by a look that began before the roster moved', async () => {
    const made = await group(3);
    const { alice, others, conversation } = made;
    const [bob, carol] = others as [TestUser, TestUser];
    await leave(carol, conversation);
    await eventually(async () => expect(await waits(conversation)).toBe(1));
    const [before] = await harness.query<{ epoch: bigint; waits: number; version: bigint }>(
      'SELECT epoch, waits, version FROM rotations_due WHERE conversation_id = $1',
      conversation.conversationId,
    );
    const { conversation: now } = await alice.device.client.getConversation({
      conversationId: conversation.conversationId,
    });
    await leave(bob, now as Conversation);
    const look = { conversationId: conversation.conversationId, ...(before as NonNullable<typeof before>) };
    const saved = await harness.db.transaction((tx) => saveRotationLook(tx, look, { at: new Date(), waits: 0 }));
    expect(saved).toBe(false);
  });

  it('is asked of one device alone, however many replicas ask', async () => {
    const replicas: ConversationServer[] = [];
    try {
      for (let index = 0; index < 3; index++) {
        const config = readConfig({ ...harness.environment(), KEYTRAIL_ROTATION_SWEEP_MS: '1' });
        const replica = createConversationServer(config, { telemetry });
        await replica.start();
        replicas.push(replica);
      }
      const groups = await Promise.all(Array.from({ length: 12 }, () => group(3)));
      for (const { alice, others } of groups) for (const { device } of [alice, ...others]) harness.online.add(device);
      await Promise.all(groups.map(becomesDue));
      const ids = new Set(groups.map(({ conversation }) => conversation.conversationId));
      const heard = () => asked.filter(({ conversationId }) => ids.has(conversationId));
      await eventually(() => expect(new Set(heard().map(({ conversationId }) => conversationId))).toEqual(ids));
      expect(heard()).toHaveLength(ids.size);
      const [row] = await harness.query(
        'SELECT count(*)::integer AS asks, sum(times)::integer AS times FROM rotation_asks WHERE conversation_id = ANY($1::uuid[])',
        [...ids],
      );
      expect(row).toEqual({ asks: ids.size, times: ids.size });
    } finally {
      await Promise.all(replicas.map((replica) => replica.stop()));
    }
  });

  it('is nothing that strangers and former members learn of', async () => {
    const { alice, others, conversation } = await group(2);
    const [bob] = others as [TestUser];
    const stranger = await harness.user();
    const { conversationId, epoch: expectedEpoch } = conversation;
    await leave(bob, conversation);
    expect((await alice.device.client.getRotation({ conversationId })).conversation?.rotationDue).toBe(MEMBER_REMOVED);
    for (const { device } of [stranger, bob]) {
      const refused = { reason: 'NOT_FOUND_OR_NOT_PERMITTED' };
      expect(await refusalOf(device.client.getRotation({ conversationId }))).toMatchObject(refused);
      expect(await refusalOf(device.client.declineRotation({ conversationId, expectedEpoch }))).toMatchObject(refused);
    }
  });

  it('covers hundreds of devices in one call', async () => {
    const alice = await harness.user();
    const others = await Promise.all(Array.from({ length: 60 }, () => harness.user(5)));
    const { conversation } = await createdBy(harness, alice.device, others);
    const { conversationId } = conversation;
    const told = await alice.device.client.getRotation({ conversationId });
    expect(told.recipients).toHaveLength(301);
    expect(told.deviceLists).toHaveLength(61);
    const { request } = rotation(harness, alice.device, conversation, { recipients: told.recipients });
    expect(await alice.device.client.rotateSession(request)).toMatchObject({ envelopesWritten: 301 });
  });
});

describe('the database, by straight SQL,', () => {
  it('refuses that two devices are asked at once', async () => {
    const made = await group(2);
    harness.online.add(made.alice.device);
    await becomesDue(made);
    await eventually(async () => expect(await askedIn(made.conversation, made.alice.device)).toBeDefined());
    await expect(
      harness.query(
        `INSERT INTO rotation_asks (conversation_id, user_id, device_id, asked_at, asked_until)
         VALUES ($1, 'somebody', 'phone', now(), now() + interval '1 minute')`,
        made.conversation.conversationId,
      ),
    ).rejects.toThrow('rotation_asks_one_at_a_time');
  });

  it('keeps a row for each rotation that is due, whoever made it due, until it is not', async () => {
    const { conversation } = await group(2);
    const { conversationId } = conversation;
    const rows = () => harness.query('SELECT epoch FROM rotations_due WHERE conversation_id = $1', conversationId);
    const set = (due: number) =>
      harness.query('UPDATE conversations SET rotation_due = $2 WHERE conversation_id = $1', conversationId, due);
    await set(3);
    expect(await rows()).toEqual([{ epoch: 1n }]);
    await set(0);
    expect(await rows()).toEqual([]);
  });
});
