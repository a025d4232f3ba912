import { randomUUID } from 'node:crypto';
import { fromBinary } from '@bufbuild/protobuf';
import { ConnectError } from '@connectrpc/connect';
import {
  type Conversation,
  ConversationKind,
  type DeviceRef,
  NotificationKind,
  NotificationRequestedSchema,
  RotationDueReason,
  SessionIncompleteSchema,
} from '@keytrail/contracts';
import {
  connectEvents,
  deviceListChanged,
  type EventBus,
  notificationRequested,
  publishHint,
  rootKeyChanged,
  subscribeCore,
} from '@keytrail/events';
import { readSettings } from '@keytrail/settings';
import { startTelemetry, type Telemetry } from '@keytrail/telemetry';
import { afterAll, afterEach, beforeAll, describe, expect, it, onTestFinished, vi } from 'vitest';
import { reachNextPage } from '../src/jobs/reach-conversations.ts';
import { conversationSettings } from '../src/service.ts';
import { noteRevokedDevices, revokedUntilCommit } from '../src/store/revoked-devices.ts';
import {
  adding,
  changingPolicy,
  createdBy,
  creation,
  gateAt,
  givingRoles,
  type Harness,
  message,
  refusalOf,
  removing,
  rotatedBy,
  rotation,
  startHarness,
  type TestDevice,
} from './harness.ts';

/** Until it holds; a busy machine may take its time. */
function eventually<T>(holds: () => T | Promise<T>): Promise<T> {
  return vi.waitFor(holds, { timeout: 15_000 });
}

const { DEVICE_REVOKED, MEMBER_REMOVED, UNSPECIFIED } = RotationDueReason;

let harness: Harness;
let bus: EventBus;
let telemetry: Telemetry;
let stop: () => Promise<void>;
const notified: { kind: NotificationKind; conversationId: string; userId: string; userIds: string[] }[] = [];

beforeAll(async () => {
  // Pulls and rounds that nobody asked for come once at the start and never again.
  harness = await startHarness({ KEYTRAIL_REVOCATIONS_PULL_MS: '3600000' });
  const config = readSettings(conversationSettings, harness.environment());
  telemetry = startTelemetry({ service: 'conversation', config });
  bus = await connectEvents({ config, log: telemetry.log });
  const subscription = subscribeCore(bus, notificationRequested.conversation.subject, async (bytes) => {
    const { notification, userIds } = fromBinary(NotificationRequestedSchema, bytes);
    if (notification) notified.push({ ...notification, userIds: [...userIds].sort() });
  });
  await bus.connection.flush();
  stop = async () => {
    subscription.stop();
    await bus.close();
    await telemetry.shutdown();
  };
}, 120_000);

afterEach(() => {
  harness.atFaultPoint = async () => {};
});

afterAll(async () => {
  await stop?.();
  await harness?.[Symbol.asyncDispose]();
});

/** identity-keys revokes the device, and tells by its event. */
async function revoke(device: DeviceRef): Promise<void> {
  harness.revoke(device);
  await tellRevoked(device);
}

function tellRevoked({ userId, deviceId }: DeviceRef): Promise<void> {
  return publishHint(bus, deviceListChanged, { userId, deviceId, version: 9n, revoked: true });
}

async function isNoted({ userId, deviceId }: DeviceRef): Promise<boolean> {
  const rows = await harness.query(
    'SELECT 1 FROM revoked_devices WHERE user_id = $1 AND device_id = $2',
    userId,
    deviceId,
  );
  return rows.length > 0;
}

async function received(): Promise<number> {
  return (await harness.query("SELECT 1 FROM inbox WHERE consumer = 'conversation-devices'")).length;
}

async function got(device: TestDevice, conversationId: string): Promise<Conversation> {
  const { conversation } = await device.client.getConversation({ conversationId });
  if (!conversation) throw new Error('no conversation in the answer');
  return conversation;
}

function untilDue(device: TestDevice, conversationId: string, due: RotationDueReason): Promise<Conversation> {
  return eventually(async () => {
    const conversation = await got(device, conversationId);
    expect(conversation.rotationDue).toBe(due);
    return conversation;
  });
}

async function dueReasons(conversationIds: readonly string[]): Promise<number[]> {
  const rows = await harness.query<{ rotation_due: number }>(
    'SELECT rotation_due FROM conversations WHERE conversation_id = ANY($1::uuid[]) ORDER BY conversation_id',
    conversationIds,
  );
  return rows.map((row) => row.rotation_due);
}

function told(kind: NotificationKind, about: { conversationId?: string; userId?: string }) {
  return notified.filter(
    (each) =>
      each.kind === kind &&
      (about.conversationId === undefined || each.conversationId === about.conversationId) &&
      (about.userId === undefined || each.userId === about.userId),
  );
}

describe('the revocation of a device', () => {
  it("makes a rotation due in its user's conversations and no others, and what the device could read is not sent any more", async () => {
    const [alice, bob, carol] = [await harness.user(2), await harness.user(), await harness.user()];
    const phone = alice.devices[1] as TestDevice;
    const { conversation, session } = await createdBy(harness, alice.device, [bob], { kind: ConversationKind.DIRECT });
    const { conversation: group } = await createdBy(harness, bob.device, [alice, carol]);
    const { conversation: others } = await createdBy(harness, bob.device, [carol]);
    const { conversationId } = conversation;

    await revoke(phone);
    const due = await untilDue(bob.device, conversationId, DEVICE_REVOKED);
    await untilDue(carol.device, group.conversationId, DEVICE_REVOKED);
    expect((await got(bob.device, others.conversationId)).rotationDue).toBe(UNSPECIFIED);
    expect(await refusalOf(bob.device.client.sendMessage(message(bob.device, session, 0n)))).toMatchObject({
      reason: 'ROTATION_REQUIRED',
      metadata: { conversation_id: conversationId, current_epoch: '1', due_reason: 'DEVICE_REVOKED' },
    });

    // Who rotates still seals to the device: refused. Without it, messages flow again, and under the new session alone.
    const withPhone = rotation(harness, bob.device, due, {
      recipients: [alice.device, phone, bob.device],
    });
    expect(await refusalOf(bob.device.client.rotateSession(withPhone.request))).toMatchObject({
      reason: 'SESSION_INCOMPLETE',
    });
    const rotated = await rotatedBy(harness, bob.device, due);
    expect(rotated.conversation.rotationDue).toBe(UNSPECIFIED);
    await bob.device.client.sendMessage(message(bob.device, rotated.session, 0n));
    expect(await refusalOf(bob.device.client.sendMessage(message(bob.device, session, 1n)))).toMatchObject({
      reason: 'ROTATION_REQUIRED',
    });
    expect((await alice.device.client.listMessages({ conversationId })).messages).toHaveLength(1);

    await eventually(() => {
      expect(told(NotificationKind.ROTATION_DUE, { conversationId })).toMatchObject([
        { userIds: [alice.userId, bob.userId].sort() },
      ]);
      // Bob shares two conversations with the user, and is told once.
      expect(told(NotificationKind.DEVICES_CHANGED, { userId: alice.userId })).toMatchObject([
        { userIds: [alice.userId, bob.userId, carol.userId].sort() },
      ]);
    });
  });

  it('keeps the device from reading and changing anything, on both wires', async () => {
    const [alice, bob] = [await harness.user(2), await harness.user()];
    const phone = alice.devices[1] as TestDevice;
    const { conversation, session } = await createdBy(harness, alice.device, [bob]);
    const { conversationId } = conversation;
    await alice.device.client.sendMessage(message(alice.device, session, 0n));
    expect((await phone.client.listMessages({ conversationId })).messages).toHaveLength(1);
    await revoke(phone);
    await eventually(async () => expect(await isNoted(phone)).toBe(true));

    const requestId = randomUUID();
    for (const client of [phone.client, phone.web]) {
      const calls = [
        () => client.getConversation({ conversationId }),
        () => client.listConversations({}),
        () => client.listMessages({ conversationId }),
        () => client.listChanges({}),
        () => client.listSessions({}),
        () => client.getRotation({ conversationId }),
        () => client.declineRotation({ conversationId, expectedEpoch: 1n }),
        () => client.sendMessage(message(phone, session, 0n)),
        () => client.requestRotation({ requestId, conversationId, expectedEpoch: 1n }),
        () => client.addMembers(adding(phone, conversation, [{ userId: 'x', role: 1 }])),
        () => client.removeMembers(removing(phone, conversation, [bob.userId])),
        () => client.changeRoles(givingRoles(phone, conversation, [{ userId: bob.userId, role: 1 }])),
        () => client.changePolicy(changingPolicy(phone, conversation, { historyPolicy: 2 })),
        () => client.listRosterChanges({ conversationId }),
        () => client.createConversation(creation(harness, phone, [bob]).request),
        () => client.rotateSession(rotation(harness, phone, conversation).request),
      ];
      for (const call of calls)
        expect(await refusalOf(call())).toMatchObject({
          reason: 'DEVICE_REVOKED',
          metadata: { device_id: phone.deviceId, revoked_at: expect.any(String) },
        });
    }
    expect((await alice.device.client.listMessages({ conversationId })).messages).toHaveLength(1);
  });

  it('is told twice and pulled besides, and makes one rotation due', async () => {
    const alice = await harness.user(2);
    const phone = alice.devices[1] as TestDevice;
    const { conversation } = await createdBy(harness, alice.device, []);
    const { conversationId } = conversation;
    await revoke(phone);
    const due = await untilDue(alice.device, conversationId, DEVICE_REVOKED);
    const rotated = await rotatedBy(harness, alice.device, due);
    const before = await received();
    await tellRevoked(phone);
    await eventually(async () => expect(await received()).toBe(before + 1));
    const told = await harness.db.transaction((tx) =>
      noteRevokedDevices(tx, [{ userId: phone.userId, deviceId: phone.deviceId, revokedAt: new Date() }]),
    );
    expect(told).toBe(0);
    expect(await harness.query('SELECT 1 FROM identity_changes')).toEqual([]);
    expect(await got(alice.device, conversationId)).toMatchObject({
      epoch: rotated.conversation.epoch,
      rotationDue: UNSPECIFIED,
    });
  });

  it('does not make little of a removal, which refuses the same messages', async () => {
    const [alice, bob] = [await harness.user(2), await harness.user()];
    const { conversation } = await createdBy(harness, alice.device, [bob]);
    const { conversationId } = conversation;
    await alice.device.client.removeMembers(removing(alice.device, conversation, [bob.userId]));
    await revoke(alice.devices[1] as TestDevice);
    await eventually(() => expect(told(NotificationKind.DEVICES_CHANGED, { userId: alice.userId })).toHaveLength(1));
    expect((await got(alice.device, conversationId)).rotationDue).toBe(MEMBER_REMOVED);
  });

  it('reaches all conversations page by page, going on where it was interrupted', async () => {
    const [alice, bob, carol] = [await harness.user(2), await harness.user(), await harness.user()];
    const phone = alice.devices[1] as TestDevice;
    const conversationIds: string[] = [];
    for (let index = 0; index < 7; index++)
      conversationIds.push((await createdBy(harness, alice.device, [bob, carol])).conversation.conversationId);
    // Noted as by a process that died right after: nobody goes on with it here but this test.
    await harness.db.transaction((tx) =>
      noteRevokedDevices(tx, [{ userId: phone.userId, deviceId: phone.deviceId, revokedAt: new Date() }]),
    );
    const parts = { db: harness.db, writerBuild: 'test', log: telemetry.log };
    const most = { conversationsAtOnce: 3, peersAtOnce: 1 };
    await reachNextPage(parts, most);
    expect((await dueReasons(conversationIds)).filter((due) => due === DEVICE_REVOKED)).toHaveLength(3);
    // Several at once, as replicas would: each page is reached once.
    while ((await Promise.all([reachNextPage(parts, most), reachNextPage(parts, most)])).includes(true));
    expect(await dueReasons(conversationIds)).toEqual(Array(7).fill(DEVICE_REVOKED));
    expect(await harness.query('SELECT 1 FROM identity_changes')).toEqual([]);
    // Each peer once, however many conversations they share.
    const outbox = await eventually(() => {
      const changed = told(NotificationKind.DEVICES_CHANGED, { userId: alice.userId });
      expect(changed).toHaveLength(2);
      return changed.flatMap(({ userIds }) => userIds).sort();
    });
    expect(outbox).toEqual([alice.userId, bob.userId, carol.userId].sort());
  });
});

describe('a change that cannot be reached', () => {
  it('keeps back none of those after it, and is reached once it can be', async () => {
    const [alice, bob] = [await harness.user(2), await harness.user(2)];
    const conversationIds: string[] = [];
    for (const user of [alice, bob])
      conversationIds.push((await createdBy(harness, user.device, [])).conversation.conversationId);
    await harness.query(
      `CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no room'; END $$`,
    );
    await harness.query(
      `CREATE TRIGGER failing BEFORE UPDATE ON conversations FOR EACH ROW
       WHEN (NEW.conversation_id = '${conversationIds[0]}') EXECUTE FUNCTION fail()`,
    );
    try {
      for (const { devices } of [alice, bob])
        await harness.db.transaction(async (tx) => {
          const { userId, deviceId } = devices[1] as TestDevice;
          await noteRevokedDevices(tx, [{ userId, deviceId, revokedAt: new Date() }]);
        });
      const parts = { db: harness.db, writerBuild: 'test', log: telemetry.log };
      await expect(reachNextPage(parts)).rejects.toThrow('P0001');
      await reachNextPage(parts);
      expect(await dueReasons([conversationIds[1] as string])).toEqual([DEVICE_REVOKED]);
      await harness.query('DROP TRIGGER failing ON conversations');
      while (await reachNextPage(parts));
      expect(await dueReasons(conversationIds)).toEqual([DEVICE_REVOKED, DEVICE_REVOKED]);
    } finally {
      await harness.query('DROP TRIGGER IF EXISTS failing ON conversations');
      await harness.query('DROP FUNCTION fail');
    }
  });
});

describe('a session that was checked before a revocation and is committed after it', () => {
  const unexpectedIn = (error: unknown) =>
    ConnectError.from(error)
      .findDetails(SessionIncompleteSchema)
      .flatMap(({ unexpected }) => unexpected.map(({ deviceId }) => deviceId));

  it.each(['creation', 'rotation'] as const)('at a %s is refused with the device', async (what) => {
    const [alice, bob] = [await harness.user(2), await harness.user()];
    const phone = alice.devices[1] as TestDevice;
    const { conversation } = await createdBy(harness, alice.device, [bob]);
    const gate = gateAt('conversation.before-commit');
    harness.atFaultPoint = gate.at;
    const late = (
      what === 'creation'
        ? alice.device.client.createConversation(creation(harness, alice.device, [bob]).request)
        : alice.device.client.rotateSession(rotation(harness, alice.device, conversation).request)
    ).then(
      () => [],
      (error: unknown) => unexpectedIn(error),
    );
    await gate.reached;
    await revoke(phone);
    await untilDue(bob.device, conversation.conversationId, DEVICE_REVOKED);
    gate.open();
    expect(await late).toEqual([phone.deviceId]);
    expect(await got(bob.device, conversation.conversationId)).toMatchObject({
      epoch: 1n,
      rotationDue: DEVICE_REVOKED,
    });
  });

  it('is waited for by the revocation when it has looked into the list, so that it is found afterwards', async () => {
    const alice = await harness.user(2);
    const phone = alice.devices[1] as TestDevice;
    const committed = Promise.withResolvers<void>();
    const looked = Promise.withResolvers<void>();
    onTestFinished(() => committed.resolve());
    const committing = harness.db.transaction(async (tx) => {
      expect(await revokedUntilCommit(tx, [phone])).toEqual([]);
      looked.resolve();
      await committed.promise;
    });
    await looked.promise;
    const noting = harness.db.transaction((tx) =>
      noteRevokedDevices(tx, [{ userId: phone.userId, deviceId: phone.deviceId, revokedAt: new Date() }]),
    );
    await eventually(async () =>
      expect(
        await harness.query(
          `SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ExclusiveLock' AND NOT granted
             AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`,
        ),
      ).toHaveLength(1),
    );
    expect(await isNoted(phone)).toBe(false);
    committed.resolve();
    await committing;
    expect(await noting).toBe(1);
    expect(await isNoted(phone)).toBe(true);
    await harness.query('DELETE FROM identity_changes');
  });

  it('never leaves an epoch that a revoked device can read without a rotation, whoever comes first', async () => {
    const bob = await harness.user();
    const alices = await Promise.all(Array.from({ length: 12 }, () => harness.user(2)));
    const outcomes = await Promise.all(
      alices.map(async (alice) => {
        const { request } = creation(harness, alice.device, [bob]);
        const created = alice.device.client.createConversation(request).then(
          ({ conversation }) => conversation?.conversationId,
          () => undefined,
        );
        await tellRevoked(alice.devices[1] as TestDevice);
        return created;
      }),
    );
    const made = outcomes.flatMap((conversationId) => conversationId ?? []);
    await eventually(async () => {
      for (const alice of alices) expect(await isNoted(alice.devices[1] as TestDevice)).toBe(true);
      expect(await harness.query('SELECT 1 FROM identity_changes')).toEqual([]);
      expect(await dueReasons(made)).toEqual(Array(made.length).fill(DEVICE_REVOKED));
    });
  });
});

describe('a changed root key', () => {
  it('is told to the devices of all who share a conversation, and makes no rotation due by itself', async () => {
    const [alice, bob] = [await harness.user(), await harness.user()];
    const { conversation } = await createdBy(harness, alice.device, [bob]);
    await publishHint(bus, rootKeyChanged, { userId: alice.userId, version: 3n, signedByPrevious: true });
    await eventually(() =>
      expect(told(NotificationKind.DEVICES_CHANGED, { userId: alice.userId })).toMatchObject([
        { userIds: [alice.userId, bob.userId].sort() },
      ]),
    );
    expect((await got(bob.device, conversation.conversationId)).rotationDue).toBe(UNSPECIFIED);
  });
});

describe('a revocation whose event was lost', () => {
  it('is pulled, and reaches the conversations like one that was told', async () => {
    await using pulling = await startHarness({ KEYTRAIL_REVOCATIONS_PULL_MS: '20' });
    const [alice, bob] = [await pulling.user(4), await pulling.user()];
    const { conversation } = await createdBy(pulling, alice.device, [bob]);
    const revoked = alice.devices.slice(1);
    for (const device of revoked) {
      pulling.revoke(device);
      pulling.revocations.push({ userId: device.userId, deviceId: device.deviceId });
    }
    await untilDue(bob.device, conversation.conversationId, DEVICE_REVOKED);
    for (const device of revoked)
      await eventually(async () =>
        expect(
          await refusalOf(device.client.getConversation({ conversationId: conversation.conversationId })),
        ).toMatchObject({ reason: 'DEVICE_REVOKED' }),
      );
  });
});

it('what was noted stands: the database refuses to change a revocation, and to go back in the list', async () => {
  const alice = await harness.user();
  await harness.query(
    'INSERT INTO revoked_devices (user_id, device_id, revoked_at) VALUES ($1, $2, now())',
    alice.userId,
    'lost',
  );
  await expect(
    harness.query('UPDATE revoked_devices SET revoked_at = now() WHERE user_id = $1', alice.userId),
  ).rejects.toMatchObject({ constraint: 'revoked_devices_never_change' });
  await harness.query('UPDATE revocation_pull SET complete_to = complete_to + 1');
  await expect(harness.query('UPDATE revocation_pull SET complete_to = complete_to - 1')).rejects.toMatchObject({
    constraint: 'revocation_pull_moves_forward',
  });
});
