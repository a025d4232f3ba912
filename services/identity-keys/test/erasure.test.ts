import { randomUUID } from 'node:crypto';
import { fromBinary } from '@bufbuild/protobuf';
import { timestampNow } from '@bufbuild/protobuf/wkt';
import { type Erasure, ErasureState, type UserErasureRequested, UserErasureRequestedSchema } from '@keytrail/contracts';
import {
  connectEvents,
  type EventBus,
  eventSettings,
  publishHint,
  subscribeCore,
  userErased,
  userErasureRequested,
} from '@keytrail/events';
import { readSettings } from '@keytrail/settings';
import { startTelemetry, telemetrySettings } from '@keytrail/telemetry';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { makeDevice, type TestDevice } from './device-keys.ts';
import { type IdentityKeysUnderTest, newUser, startIdentityKeys, wires } from './identity-keys-fixture.ts';
import { refusalOf } from './refusal-of.ts';

let service: IdentityKeysUnderTest;
let bus: EventBus;
let stop: () => Promise<void>;
const requested: UserErasureRequested[] = [];

beforeAll(async () => {
  service = await startIdentityKeys({
    replicas: 2,
    settings: {
      KEYTRAIL_LOG_LEVEL: 'error',
      KEYTRAIL_ERASURE_BATCH: '2',
      KEYTRAIL_ERASURE_ROUND_MS: '200',
      KEYTRAIL_CALLERS_REMEMBERED_MS: '1',
    },
  });
  const config = readSettings(
    { ...eventSettings, ...telemetrySettings },
    { KEYTRAIL_ENVIRONMENT: 'development', KEYTRAIL_LOG_LEVEL: 'silent', KEYTRAIL_NATS_URL: service.natsUrl },
  );
  const telemetry = startTelemetry({ service: 'identity-keys', config });
  bus = await connectEvents({ config, log: telemetry.log });
  const subscription = subscribeCore(bus, userErasureRequested.subject, async (bytes) => {
    requested.push(fromBinary(UserErasureRequestedSchema, bytes));
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
  await service?.stop();
});

async function remove(userId: string, requestId: string = randomUUID(), replica = 0): Promise<Erasure> {
  const operator = await service.asOperator({ replica });
  const { erasure } = await operator.deleteUser({ requestId, userId, auditNote: 'the user asked for it' });
  if (!erasure) throw new Error('no erasure in the answer');
  return erasure;
}

async function erasureOf(erasureId: string): Promise<Erasure> {
  const { erasure } = await (await service.asOperator()).getErasure({ erasureId });
  if (!erasure) throw new Error('no erasure in the answer');
  return erasure;
}

type Reporting = keyof typeof userErased;

function report(erasureId: string, by: Reporting, erased = 1n): Promise<void> {
  return publishHint(bus, userErased[by], {
    erasureId,
    report: { service: by, erasedAt: timestampNow(), counts: [{ kind: 'things', erased, kept: 2n }] },
  });
}

const all: readonly Reporting[] = ['conversation', 'presence', 'session'];

function until(erasureId: string, state: ErasureState): Promise<Erasure> {
  return vi.waitFor(
    async () => {
      const erasure = await erasureOf(erasureId);
      expect(erasure.state).toBe(state);
      return erasure;
    },
    { timeout: 15_000, interval: 30 },
  );
}

function counted(erasure: Erasure, service: string) {
  const of = erasure.services.find((each) => each.service === service);
  return Object.fromEntries((of?.counts ?? []).map(({ kind, erased }) => [kind, Number(erased)]));
}

async function rows<R>(text: string, ...values: unknown[]): Promise<R[]> {
  return (await service.db.pool.query(text, values)).rows as R[];
}

/** Table and column of each text, array of texts or bytes that is, or has within it, the user's id. */
async function placesNaming(userId: string): Promise<string[]> {
  const columns = await rows<{ table_name: string; column_name: string; data_type: string }>(
    `SELECT table_name, column_name, data_type FROM information_schema.columns
     WHERE table_schema = 'public' AND data_type IN ('text', 'bytea', 'ARRAY') AND table_name <> 'outbox'`,
  );
  const found: string[] = [];
  for (const { table_name, column_name, data_type } of columns) {
    const text = data_type === 'bytea' ? `encode(${column_name}, 'escape')` : `${column_name}::text`;
    const naming = await rows(`SELECT 1 FROM ${table_name} WHERE strpos(${text}, $1) > 0 LIMIT 1`, userId);
    if (naming.length > 0) found.push(`${table_name}.${column_name}`);
  }
  return found.sort();
}

async function userWith(...deviceIds: string[]): Promise<TestDevice> {
  const [first = 'phone', ...further] = deviceIds;
  const { device } = await service.register({ userId: newUser(), deviceId: first });
  for (const deviceId of further) await service.register({ userId: device.userId, deviceId, rootKey: device.rootKey });
  return device;
}

describe('DeleteUser', () => {
  it('at once leaves no device of the user good, and asks the other services', async () => {
    const alice = await userWith('phone', 'laptop');
    await service.revoke(alice.userId, 'laptop');
    const erasure = await remove(alice.userId);
    expect(erasure).toMatchObject({ userId: alice.userId, state: ErasureState.RUNNING });
    expect(erasure.services.map(({ service: name, erasedAt }) => [name, erasedAt])).toEqual(
      ['conversation', 'identity-keys', 'presence', 'session'].map((name) => [name, undefined]),
    );
    const active = await rows('SELECT 1 FROM devices WHERE user_id = $1 AND revoked_at IS NULL', alice.userId);
    expect(active).toEqual([]);
    const unclaimed = await rows(
      'SELECT 1 FROM unclaimed_one_time_prekeys JOIN devices USING (device_number) WHERE user_id = $1',
      alice.userId,
    );
    expect(unclaimed).toEqual([]);
    await vi.waitFor(
      () =>
        expect(requested.find(({ erasureId }) => erasureId === erasure.erasureId)).toMatchObject({
          userId: alice.userId,
          deviceIds: ['phone', 'laptop'],
        }),
      10_000,
    );
    const audited = await rows(
      'SELECT operator, action, note FROM audit_log WHERE user_id = $1 AND device_id IS NULL',
      alice.userId,
    );
    expect(audited).toEqual([{ operator: 'operator', action: 'delete_user', note: 'the user asked for it' }]);
  });

  it.for(wires)('refuses the user from then on: every call, and a new registration (%s)', async (wire) => {
    const alice = await userWith('phone');
    await remove(alice.userId);
    const client = await service.asDevice(alice, { wire, replica: 1 });
    const erased = { reason: 'USER_ERASED', metadata: { user_id: alice.userId } };
    const calls = [
      () => client.getPrekeyStatus({}),
      () => client.getDevices({ userIds: [alice.userId] }),
      () => client.claimPrekeyBundles({ claimId: randomUUID(), userIds: [newUser()] }),
      () => client.registerDevice(makeDevice({ userId: alice.userId, deviceId: 'new' }).registration),
    ];
    for (const call of calls) expect(await refusalOf(call())).toMatchObject(erased);
  });

  it('is for operators alone', async () => {
    const alice = await userWith('phone');
    const asked = { requestId: randomUUID(), userId: alice.userId, auditNote: 'me' };
    for (const client of [await service.asDevice(alice), service.asService('session')])
      expect((await refusalOf(client.deleteUser(asked))).reason).toBe('CALLER_NOT_ALLOWED');
    const unknown = (await service.asOperator()).getErasure({ erasureId: randomUUID() });
    expect((await refusalOf(unknown)).reason).toBe('NOT_FOUND_OR_NOT_PERMITTED');
  });

  it('has one erasure for a user, however often and wherever it is called at the same time', async () => {
    const alice = await userWith('phone');
    const erasures = await Promise.all(Array.from({ length: 8 }, (_, i) => remove(alice.userId, undefined, i % 2)));
    expect(new Set(erasures.map(({ erasureId }) => erasureId)).size).toBe(1);
    expect(await rows('SELECT 1 FROM audit_log WHERE user_id = $1', alice.userId)).toHaveLength(1);
  });

  it('also erases a user who never registered here, and races with a registration to one end', async () => {
    for (let round = 0; round < 5; round++) {
      const { device, registration } = makeDevice({ userId: newUser(), deviceId: 'phone' });
      const client = await service.asDevice(device, { replica: 1 });
      const registering = client.registerDevice(registration).then(
        () => undefined,
        (error) => refusalOf(Promise.reject(error)),
      );
      const [erasure, refusal] = await Promise.all([remove(device.userId), registering]);
      if (refusal) expect(refusal.reason).toBe('USER_ERASED');
      const active = await rows('SELECT 1 FROM devices WHERE user_id = $1 AND revoked_at IS NULL', device.userId);
      expect(active).toEqual([]);
      for (const by of all) await report(erasure.erasureId, by);
      await until(erasure.erasureId, ErasureState.COMPLETED);
    }
  });
});

describe('an erasure', () => {
  it('ends when all have reported: nothing but erasure, audit log and answers of the last seven days names the user', async () => {
    const alice = await userWith('phone', 'laptop');
    const bob = await userWith('phone');
    service.peers.share(alice.userId, bob.userId);
    const asBob = await service.asDevice(bob);
    const asAlice = await service.asDevice(alice);
    const byDevice = {
      claimId: randomUUID(),
      devices: [alice, bob].map(({ userId, deviceId }) => ({ userId, deviceId })),
    };
    const byUser = { claimId: randomUUID(), userIds: [bob.userId, alice.userId] };
    await asBob.claimPrekeyBundles(byDevice);
    await asBob.claimPrekeyBundles(byUser);
    await asAlice.claimPrekeyBundles({ claimId: randomUUID(), userIds: [bob.userId] });
    await (await service.asOperator()).setClaimPermission({
      requestId: randomUUID(),
      userId: bob.userId,
      targetUserId: alice.userId,
      expiresAt: { seconds: BigInt(Math.floor(Date.now() / 1000) + 3600), nanos: 0 },
    });

    const { erasureId } = await remove(alice.userId);
    await report(erasureId, 'conversation');
    await report(erasureId, 'session');
    await vi.waitFor(
      async () => expect((await erasureOf(erasureId)).services.filter(({ erasedAt }) => erasedAt)).toHaveLength(2),
      10_000,
    );
    expect(await rows('SELECT 1 FROM devices WHERE user_id = $1', alice.userId)).toHaveLength(2);
    await report(erasureId, 'presence');
    const erasure = await until(erasureId, ErasureState.COMPLETED);

    expect(counted(erasure, 'identity-keys')).toMatchObject({
      users: 1,
      devices: 2,
      device_log: 4,
      root_keys: 1,
      one_time_prekeys: 6,
      one_time_kem_prekeys: 6,
      signed_prekeys: 2,
      last_resort_prekeys: 2,
      claims: 1,
      claims_blanked: 2,
      claim_permissions: 1,
      request_ids: 2,
    });
    expect(counted(erasure, 'presence')).toEqual({ things: 1 });
    expect(await placesNaming(alice.userId)).toEqual([
      'audit_log.user_id',
      'erasures.user_id',
      'request_ids.response',
      'revocations.user_id',
    ]);

    const again = await asBob.claimPrekeyBundles(byDevice);
    expect(again.results.map(({ bundle }) => bundle?.userId)).toEqual([undefined, bob.userId]);
    const users = await asBob.claimPrekeyBundles(byUser);
    expect(users.results.map(({ bundle }) => bundle?.userId)).toEqual([bob.userId]);
    expect(users.users.map(({ userId, deviceListVersion }) => [userId, deviceListVersion])).toEqual([
      [bob.userId, 1n],
      [alice.userId, 0n],
    ]);
  });

  it('keeps the first report of each service, and asks those again that have not reported', async () => {
    const alice = await userWith('phone');
    const { erasureId } = await remove(alice.userId);
    const asked = () => requested.filter((request) => request.erasureId === erasureId);
    await vi.waitFor(() => expect(asked().length).toBeGreaterThanOrEqual(3), { timeout: 10_000 });
    for (const request of asked()) expect(request).toMatchObject({ userId: alice.userId, deviceIds: ['phone'] });
    await report(erasureId, 'session', 5n);
    await vi.waitFor(async () => expect(counted(await erasureOf(erasureId), 'session')).toEqual({ things: 5 }), 10_000);
    await report(erasureId, 'session', 7n);
    await report(randomUUID(), 'session');
    await report(erasureId, 'presence');
    await report(erasureId, 'conversation');
    const erasure = await until(erasureId, ErasureState.COMPLETED);
    expect(counted(erasure, 'session')).toEqual({ things: 5 });
    expect(await rows('SELECT 1 FROM dead_letters')).toEqual([]);
  });

  it('goes on where it was when the database is lost in the middle, and counts right', async () => {
    const alice = await userWith('phone', 'laptop', 'tablet');
    const { erasureId } = await remove(alice.userId);
    const holding = await service.db.pool.connect();
    try {
      await holding.query('BEGIN');
      await holding.query(
        `SELECT FROM one_time_prekeys JOIN devices USING (device_number) WHERE user_id = $1 AND device_id = 'tablet' FOR UPDATE OF one_time_prekeys`,
        [alice.userId],
      );
      for (const by of all) await report(erasureId, by);
      const [waiting] = await vi.waitFor(
        async () => {
          const found = await rows<{ pid: number }>(
            `SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%one_time_prekeys WHERE (device_number%'`,
          );
          expect(found.length).toBeGreaterThan(0);
          return found;
        },
        { timeout: 10_000, interval: 20 },
      );
      expect(await rows('SELECT 1 FROM devices WHERE user_id = $1', alice.userId)).toHaveLength(1);
      await rows('SELECT pg_terminate_backend($1)', waiting?.pid);
    } finally {
      await holding.query('ROLLBACK');
      holding.release();
    }
    const erasure = await until(erasureId, ErasureState.COMPLETED);
    expect(counted(erasure, 'identity-keys')).toMatchObject({
      devices: 3,
      one_time_prekeys: 9,
      one_time_kem_prekeys: 9,
    });
  });

  it('leaves the revocations in their list as long as it names the user: who reads late learns of them', async () => {
    const alice = await userWith('phone', 'laptop');
    const presence = service.asService('presence');
    const [before] = await rows<{ number: bigint | null }>('SELECT max(number) AS number FROM revocations');
    const after = BigInt(before?.number ?? 0);
    const { erasureId } = await remove(alice.userId);
    for (const by of all) await report(erasureId, by);
    await until(erasureId, ErasureState.COMPLETED);
    const late = async () =>
      (await presence.listRevokedDevices({ after })).revocations.flatMap(({ device }) =>
        device?.userId === alice.userId ? [device.deviceId] : [],
      );
    expect(await late()).toEqual(['phone', 'laptop']);
    const gone = await rows('DELETE FROM revocations WHERE user_id = $1', alice.userId).then(
      () => undefined,
      (error: { constraint?: string }) => error.constraint,
    );
    expect(gone).toBe('revocations_only_grow');
    await rows(`UPDATE erasures SET user_id = NULL, device_ids = '{}' WHERE erasure_id = $1`, erasureId);
    expect(await late()).toEqual([]);
  });

  it('keeps its report without the id of the user once the time is over: then the id is free', async () => {
    const alice = await userWith('phone');
    const { erasureId } = await remove(alice.userId);
    for (const by of all) await report(erasureId, by);
    await until(erasureId, ErasureState.COMPLETED);
    await rows(`UPDATE erasures SET user_id = NULL, device_ids = '{}' WHERE erasure_id = $1`, erasureId);
    const erasure = await erasureOf(erasureId);
    expect(erasure).toMatchObject({ userId: '', state: ErasureState.COMPLETED });
    expect(counted(erasure, 'identity-keys')).toMatchObject({ users: 1 });
    await vi.waitFor(() => service.register({ userId: alice.userId, deviceId: 'phone' }), 10_000);
  });
});

describe('the database, by straight SQL, refuses', () => {
  async function refusedBy(text: string, ...values: unknown[]): Promise<string | undefined> {
    return rows(text, ...values).then(
      () => undefined,
      (error: { constraint?: string }) => error.constraint,
    );
  }

  it('to name an erased user, or a second erasure of one', async () => {
    const { userId } = await userWith('phone');
    const { erasureId } = await remove(userId);
    for (const by of all) await report(erasureId, by);
    await until(erasureId, ErasureState.COMPLETED);
    const named = `INSERT INTO users (user_id, root_key, device_list_version) VALUES ($1, decode(repeat('00', 32), 'hex'), 0)`;
    expect(await refusedBy(named, userId)).toBe('not_of_erased_users');
    const second = `INSERT INTO erasures (erasure_id, user_id, device_ids) VALUES (gen_random_uuid(), $1, '{}')`;
    expect(await refusedBy(second, userId)).toBe('erasures_one_per_user');
  });

  it('to end an erasure without every report, while the user is there, or to forget whom it is of before', async () => {
    const { userId } = await userWith('phone');
    const { erasureId } = await remove(userId);
    const end = 'UPDATE erasures SET completed_at = now() WHERE erasure_id = $1';
    expect(await refusedBy(end, erasureId)).toBe('erasures_complete_with_all_reports');
    await rows(
      `INSERT INTO erasure_reports SELECT $1, s, now() FROM unnest(ARRAY['conversation', 'identity-keys', 'session']) s`,
      erasureId,
    );
    expect(await refusedBy(end, erasureId)).toBe('erasures_complete_with_all_reports');
    const forget = `UPDATE erasures SET user_id = NULL, device_ids = '{}' WHERE erasure_id = $1`;
    expect(await refusedBy(forget, erasureId)).toBe('erasures_name_their_user');
    const other = `UPDATE erasures SET user_id = 'somebody-else' WHERE erasure_id = $1`;
    expect(await refusedBy(other, erasureId)).toBe('erasures_go_forward');
  });
});
