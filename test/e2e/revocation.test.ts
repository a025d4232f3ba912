import type { DescService } from '@bufbuild/protobuf';
import { type Client, createClient } from '@connectrpc/connect';
import type { KeytrailClient } from '@keytrail/client';
import {
  ConversationService,
  IdentityKeysService,
  PresenceService,
  RotationDueReason,
  SessionService,
} from '@keytrail/contracts';
import { createGrpcTransport, type GrpcTransport, readRefusal } from '@keytrail/rpc';
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { someone, startWorld, type World } from './world.ts';

/** Until it holds; a busy machine may take its time. */
function eventually<T>(holds: () => T | Promise<T>): Promise<T> {
  return vi.waitFor(holds, { timeout: 15_000 });
}

let world: World;
const transports: GrpcTransport[] = [];

beforeAll(async () => {
  world = await startWorld({
    name: 'test-revocation',
    replicas: { session: 2, presence: 2 },
    env: { KEYTRAIL_REVOCATIONS_PULL_MS: '500' },
  });
});
afterAll(async () => {
  for (const transport of transports) transport.close();
  await world?.[Symbol.asyncDispose]();
});

/** Calls as a device, past its SDK: a stolen device keeps to no rules. */
function as<S extends DescService>(
  service: S,
  name: Parameters<World['constellation']['grpcTarget']>[0],
  userId: string,
  deviceId: string,
): Client<S> {
  const transport = createGrpcTransport({
    target: world.constellation.grpcTarget(name),
    authorization: async () => `Bearer ${await world.constellation.issuer.token({ userId, deviceId })}`,
  });
  transports.push(transport);
  return createClient(service, transport);
}

async function refusalOf(pending: Promise<unknown>) {
  try {
    await pending;
  } catch (error) {
    return readRefusal(error);
  }
  throw new Error('it was not refused');
}

/** Alice with a laptop and a phone, in a conversation with Bob that all three have read. */
async function people() {
  const [a, b] = [someone('alice'), someone('bob')];
  const laptop = await world.online(a, 'laptop');
  const phone = await world.further(laptop, a, 'phone');
  await phone.attach();
  const bob = await world.online(b, 'phone');
  const { conversationId, sessionId } = await laptop.createConversation({ kind: 'direct', members: [b] });
  await laptop.send(conversationId, 'before');
  for (const reader of [phone, bob]) expect(await reader.messages(conversationId)).toMatchObject([{ text: 'before' }]);
  return { a, b, laptop, phone, bob, conversationId, sessionId };
}

function heard(bob: KeytrailClient, userId: string): Promise<readonly string[]> {
  return new Promise((resolve) => {
    bob.on('devicesChanged', ({ userId: whose, revoked }) => {
      if (whose === userId && revoked.length > 0) resolve(revoked);
    });
  });
}

/** What is true of a revoked device in the whole constellation, whatever brought it there. */
async function expectRevokedEverywhere({
  a,
  b,
  laptop,
  phone,
  bob,
  conversationId,
  sessionId,
}: Awaited<ReturnType<typeof people>>) {
  const refused = { reason: 'DEVICE_REVOKED', metadata: { device_id: 'phone' } };
  await expect(phone.attach()).rejects.toMatchObject({ reason: 'DEVICE_REVOKED' });
  const presence = as(PresenceService, 'presence', a, 'phone');
  const attaching = presence.attach({ attachCounter: 1_000n })[Symbol.asyncIterator]();
  expect(await refusalOf(attaching.next())).toMatchObject(refused);
  expect((await as(PresenceService, 'presence', b, 'phone').listOnline({ userIds: [a] })).devices).toMatchObject([
    { device: { deviceId: 'laptop' } },
  ]);

  const session = as(SessionService, 'session', a, 'phone');
  const conversation = as(ConversationService, 'conversation', a, 'phone');
  await eventually(async () => {
    expect(await refusalOf(session.getInitialSession({ conversationId, sessionId }))).toMatchObject({
      reason: 'DEVICE_REVOKED',
    });
    expect(await refusalOf(conversation.listMessages({ conversationId }))).toMatchObject(refused);
  });
  const identityKeys = as(IdentityKeysService, 'identity-keys', a, 'phone');
  expect(await refusalOf(identityKeys.getPrekeyStatus({}))).toMatchObject(refused);

  const bobs = as(ConversationService, 'conversation', b, 'phone');
  await eventually(async () => {
    const { conversation: now } = await bobs.getConversation({ conversationId });
    expect(now).toMatchObject({ epoch: 1n, rotationDue: RotationDueReason.DEVICE_REVOKED });
  });

  // Who sends next makes the rotation; nothing of the new epoch is for the phone.
  const sent = await bob.send(conversationId, 'after');
  expect(sent.epoch).toBe(2n);
  await laptop.send(conversationId, 'and on');
  expect(await laptop.messages(conversationId)).toMatchObject([
    { text: 'before' },
    { text: 'after' },
    { text: 'and on' },
  ]);
  expect((await bobs.getConversation({ conversationId })).conversation?.rotationDue).toBe(
    RotationDueReason.UNSPECIFIED,
  );
  const asked = { conversationId, sessionId: sent.sessionId };
  expect(await refusalOf(session.getInitialSession(asked))).toMatchObject({ reason: 'DEVICE_REVOKED' });
  await expect(phone.messages(conversationId)).rejects.toMatchObject({ reason: 'DEVICE_REVOKED' });
  const sql = new pg.Client({ connectionString: world.constellation.databaseUrls.session });
  await sql.connect();
  try {
    const { rows } = await sql.query('SELECT user_id, device_id FROM envelopes WHERE session_id = $1 ORDER BY 1, 2', [
      sent.sessionId,
    ]);
    expect(rows).toEqual([
      { user_id: a, device_id: 'laptop' },
      { user_id: b, device_id: 'phone' },
    ]);
  } finally {
    await sql.end();
  }
}

describe('a device that its user revokes', () => {
  test('is out everywhere: no stream, no keys, no messages, and what is sent from then on is under keys it never had', async () => {
    const all = await people();
    const bobHeard = heard(all.bob, all.a);
    const out = new Promise((resolve) => all.phone.on('revoked', resolve));
    await all.laptop.revokeDevice('phone');
    await out;
    expect(await bobHeard).toEqual(['phone']);
    await expectRevokedEverywhere(all);
  });

  test('is out everywhere also when no event tells of it', async () => {
    const all = await people();
    const sql = new pg.Client({ connectionString: world.constellation.databaseUrls['identity-keys'] });
    await sql.connect();
    try {
      await sql.query(`CREATE FUNCTION lose_event() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'`);
      await sql.query(`CREATE TRIGGER lose_events BEFORE INSERT ON outbox FOR EACH ROW
        WHEN (NEW.subject = 'keytrail.identitykeys.v1.device_list_changed') EXECUTE FUNCTION lose_event()`);
      const bobHeard = heard(all.bob, all.a);
      const out = new Promise((resolve) => all.phone.on('revoked', resolve));
      await all.laptop.revokeDevice('phone');
      await out;
      expect(await bobHeard).toEqual(['phone']);
      await expectRevokedEverywhere(all);
    } finally {
      await sql.query('DROP TRIGGER IF EXISTS lose_events ON outbox');
      await sql.query('DROP FUNCTION IF EXISTS lose_event');
      await sql.end();
    }
  });
});
