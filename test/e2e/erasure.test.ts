import { randomUUID } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { type Client, createClient } from '@connectrpc/connect';
import { operatorScope } from '@keytrail/auth';
import type { KeytrailClient } from '@keytrail/client';
import { type Erasure, ErasureState, IdentityKeysService } from '@keytrail/contracts';
import { createGrpcTransport, type GrpcTransport } from '@keytrail/rpc';
import { Redis } from 'ioredis';
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { someone, startWorld, type World } from './world.ts';

const retention = readFileSync(join(import.meta.dirname, '../../docs/retention.md'), 'utf8');

let world: World;
let transport: GrpcTransport;
let operator: Client<typeof IdentityKeysService>;
let redis: Redis;
const databases: { readonly service: string; readonly sql: pg.Client }[] = [];

beforeAll(async () => {
  world = await startWorld({
    name: 'test-erasure',
    env: { KEYTRAIL_ERASURE_ROUND_MS: '500', KEYTRAIL_ERASURE_BATCH: '2', KEYTRAIL_REVOCATIONS_PULL_MS: '500' },
  });
  const { constellation } = world;
  transport = createGrpcTransport({
    target: constellation.grpcTarget('identity-keys'),
    authorization: async () =>
      `Bearer ${await constellation.issuer.token({ userId: 'ops', deviceId: 'console', scopes: [operatorScope] })}`,
  });
  operator = createClient(IdentityKeysService, transport);
  redis = new Redis(constellation.redis.url);
  for (const [service, connectionString] of Object.entries(constellation.databaseUrls)) {
    const sql = new pg.Client({ connectionString });
    await sql.connect();
    databases.push({ service, sql });
  }
});
afterAll(async () => {
  transport?.close();
  redis?.disconnect();
  await Promise.all(databases.map(({ sql }) => sql.end()));
  await world?.[Symbol.asyncDispose]();
});

async function erase(userId: string): Promise<string> {
  const { erasure } = await operator.deleteUser({
    requestId: randomUUID(),
    userId,
    auditNote: 'the user asked for it',
  });
  if (!erasure) throw new Error('no erasure in the answer');
  return erasure.erasureId;
}

function completed(erasureId: string): Promise<Erasure> {
  return vi.waitFor(
    async () => {
      const { erasure } = await operator.getErasure({ erasureId });
      if (!erasure) throw new Error('no erasure in the answer');
      expect(erasure.state).toBe(ErasureState.COMPLETED);
      return erasure;
    },
    { timeout: 30_000, interval: 50 },
  );
}

function counts({ services }: Erasure, service: string) {
  const of = services.find((each) => each.service === service);
  return Object.fromEntries((of?.counts ?? []).map(({ kind, erased, kept }) => [kind, [Number(erased), Number(kept)]]));
}

/** The public keys of a user's devices: each 32 bytes. */
async function keysOf(userId: string): Promise<Buffer[]> {
  const identityKeys = databases.find(({ service }) => service === 'identity-keys');
  if (!identityKeys) throw new Error('there is no identity-keys');
  const { rows } = await identityKeys.sql.query<{
    identity_key: Buffer;
    signing_key: Buffer;
    certificate_root_key: Buffer;
  }>('SELECT identity_key, signing_key, certificate_root_key FROM devices WHERE user_id = $1', [userId]);
  return rows.flatMap((row) => [row.identity_key, row.signing_key, row.certificate_root_key]);
}

/** Service, table and column of each text or bytes in any database that are, or have within them, the user's id or one of the keys; then keys of Redis. */
async function placesNaming(userId: string, keys: readonly Buffer[]): Promise<string[]> {
  const found: string[] = [];
  for (const { service, sql } of databases) {
    const { rows: columns } = await sql.query<{ table_name: string; column_name: string; data_type: string }>(
      `SELECT table_name, column_name, data_type FROM information_schema.columns
       WHERE table_schema = 'public' AND data_type IN ('text', 'bytea', 'ARRAY')`,
    );
    for (const { table_name, column_name, data_type } of columns) {
      const bytes = data_type === 'bytea' ? column_name : `convert_to(${column_name}::text, 'UTF8')`;
      const { rows } = await sql.query(
        `SELECT 1 FROM ${table_name}, unnest($1::bytea[]) AS searched WHERE position(searched IN ${bytes}) > 0 LIMIT 1`,
        [[Buffer.from(userId), ...keys]],
      );
      if (rows.length > 0) found.push(`${service}: ${table_name}.${column_name}`);
    }
  }
  for (const key of await redis.keys('*')) {
    if (!key.includes(userId)) continue;
    // Buckets of the limits on claims go by themselves when they are full again.
    const bucket = key.startsWith('keytrail:{claims}:') && (await redis.pttl(key)) !== -1;
    if (!bucket) found.push(`redis: ${key}`);
  }
  return found.sort();
}

/** What docs/retention.md says is kept of an erased user. */
const kept = new Set(
  [...retention.matchAll(/^\| `((?:identity-keys|session|conversation): [a-z_]+\.[a-z_]+)` \|/gm)].map(
    ([, place]) => place,
  ),
);

async function people() {
  const [a, b, c] = [someone('alice'), someone('bob'), someone('carol')];
  const laptop = await world.online(a, 'laptop');
  const phone = await world.further(laptop, a, 'phone');
  await phone.attach();
  const bob = await world.online(b, 'phone');
  const carol = await world.online(c, 'phone');
  const group = (await laptop.createConversation({ kind: 'group', members: [b, c] })).conversationId;
  const direct = (await bob.createConversation({ kind: 'direct', members: [a] })).conversationId;
  await laptop.send(group, 'from the laptop');
  await phone.send(group, 'from the phone');
  await bob.send(group, 'from bob');
  await phone.send(direct, 'from the phone');
  await bob.send(direct, 'from bob');
  for (const reader of [bob, carol]) expect(await texts(reader, group)).toHaveLength(3);
  // Was there for none of it, and asks for the key.
  const watch = await world.further(laptop, a, 'watch');
  await watch.attach();
  expect(await texts(watch, group)).toHaveLength(3);
  return { a, b, c, laptop, phone, bob, carol, group, direct };
}

const erased = 'MessageErasedError: the message was erased together with its sender';

async function texts(reader: KeytrailClient, conversationId: string): Promise<string[]> {
  return (await reader.messages(conversationId)).map((message) =>
    'text' in message ? message.text : `${message.error}`,
  );
}

describe('an erased user', () => {
  test('is gone from every service, and the others go on', async () => {
    const { a, b, phone, bob, carol, group, direct } = await people();
    const keys = await keysOf(a);
    expect(keys).toHaveLength(9);
    const erasure = await completed(await erase(a));

    expect(erasure.services.map(({ service }) => service)).toEqual([
      'conversation',
      'identity-keys',
      'presence',
      'session',
    ]);
    expect(counts(erasure, 'identity-keys')).toMatchObject({ users: [1, 0], devices: [3, 0] });
    expect(counts(erasure, 'conversation')).toMatchObject({ messages: [3, 0], conversations: [2, 0], epochs: [0, 1] });
    expect(counts(erasure, 'session')).toMatchObject({
      envelopes: [5, 2],
      sessions: [0, 1],
      key_requests: [1, 0],
      revoked_devices: [0, 3],
    });

    await vi.waitFor(async () => {
      const places = await placesNaming(a, keys);
      expect(places.filter((place) => !kept.has(place))).toEqual([]);
      expect(places).toContain('session: sessions.header');
    }, 10_000);

    const sent = await bob.send(group, 'after');
    expect(sent.epoch).toBe(2n);
    expect(await texts(carol, group)).toEqual([erased, erased, 'from bob', 'after']);
    expect(await texts(bob, direct)).toEqual([erased, 'from bob']);
    await expect(bob.send(direct, 'anybody there?')).rejects.toMatchObject({ reason: 'CONVERSATION_CLOSED' });

    // The first session was made by a device that is known nowhere any more; what is stored with it is enough to open it.
    const tablet = await world.further(bob, b, 'tablet');
    await tablet.attach();
    expect(await texts(tablet, group)).toEqual([erased, erased, 'from bob', 'after']);

    await expect(world.device(a, 'new').register()).rejects.toMatchObject({ reason: 'USER_ERASED' });
    await expect(phone.send(group, 'still here')).rejects.toThrow();
    await expect(bob.createConversation({ kind: 'direct', members: [a] })).rejects.toThrow();
  });

  test('is erased to the end, and counted right, when a service is killed in the middle', async () => {
    const { a } = await people();
    const [replica] = world.constellation.of('conversation');
    if (!replica) throw new Error('there is no conversation service');
    await replica.process.restart({ env: { KEYTRAIL_FAULT_POINT: 'conversation.during-erasure' } });
    const died = replica.process.exited;
    const erasureId = await erase(a);
    expect((await died).signal).toBe('SIGKILL');
    const { erasure } = await operator.getErasure({ erasureId });
    expect(erasure?.state).toBe(ErasureState.RUNNING);
    await replica.process.restart({ env: { KEYTRAIL_FAULT_POINT: '' } });
    expect(counts(await completed(erasureId), 'conversation')).toMatchObject({
      messages: [3, 0],
      memberships: [2, 0],
      conversations: [2, 0],
    });
  });
});
