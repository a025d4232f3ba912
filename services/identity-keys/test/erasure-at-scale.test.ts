import { randomUUID } from 'node:crypto';
import { timestampNow } from '@bufbuild/protobuf/wkt';
import { ErasureState } from '@keytrail/contracts';
import { connectEvents, type EventBus, eventSettings, publishHint, userErased } from '@keytrail/events';
import { readSettings } from '@keytrail/settings';
import { type Database, openDatabase } from '@keytrail/storage';
import { startTelemetry, telemetrySettings } from '@keytrail/telemetry';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { eraseOwnRows } from '../src/store/erase-own-rows.ts';
import { type IdentityKeysUnderTest, newUser, startIdentityKeys } from './identity-keys-fixture.ts';

let service: IdentityKeysUnderTest;
let bus: EventBus;
const closing: (() => Promise<void>)[] = [];

beforeAll(async () => {
  service = await startIdentityKeys({ settings: { KEYTRAIL_LOG_LEVEL: 'error', KEYTRAIL_ERASURE_ROUND_MS: '200' } });
  const config = readSettings(
    { ...eventSettings, ...telemetrySettings },
    { KEYTRAIL_ENVIRONMENT: 'development', KEYTRAIL_LOG_LEVEL: 'silent', KEYTRAIL_NATS_URL: service.natsUrl },
  );
  const telemetry = startTelemetry({ service: 'identity-keys', config });
  closing.push(() => telemetry.shutdown());
  bus = await connectEvents({ config, log: telemetry.log });
  closing.push(() => bus.close());
}, 120_000);
afterAll(async () => {
  for (let close = closing.pop(); close; close = closing.pop()) await close();
  await service?.stop();
});

async function rows<R>(text: string, ...values: unknown[]): Promise<R[]> {
  return (await service.db.pool.query(text, values)).rows as R[];
}

interface Someone {
  readonly userId: string;
  readonly number: bigint;
}

async function someone(): Promise<Someone> {
  const { device } = await service.register({ userId: newUser(), deviceId: 'phone' });
  const [row] = await rows<{ device_number: bigint }>(
    'SELECT device_number FROM devices WHERE user_id = $1',
    device.userId,
  );
  return { userId: device.userId, number: row?.device_number ?? 0n };
}

/** An erasure that waits for the other services. */
async function requested({ userId }: Someone): Promise<string> {
  const operator = await service.asOperator();
  const { erasure } = await operator.deleteUser({ requestId: randomUUID(), userId, auditNote: 'asked for' });
  return erasure?.erasureId ?? '';
}

async function reportAll(erasureId: string): Promise<void> {
  for (const by of ['conversation', 'presence', 'session'] as const)
    await publishHint(bus, userErased[by], {
      erasureId,
      report: { service: by, erasedAt: timestampNow(), counts: [] },
    });
}

async function ended(erasureId: string): Promise<void> {
  const operator = await service.asOperator();
  await vi.waitFor(
    async () => expect((await operator.getErasure({ erasureId })).erasure?.state).toBe(ErasureState.COMPLETED),
    { timeout: 15_000, interval: 30 },
  );
}

/** So many claims, a millisecond apart, up to now: of `callers`, in turns, each of all `devices`. */
async function claims(count: number, callers: readonly string[], devices: readonly bigint[]): Promise<void> {
  await rows(
    `INSERT INTO claims (caller, claim_id, devices_digest, device_numbers, signed_prekey_ids, last_resort_prekey_ids, one_time_prekey_ids,
       kem_prekey_ids, passed_over, claimed_at)
     SELECT ($2::text[])[1 + i % cardinality($2::text[])], gen_random_uuid(), decode(repeat('00', 32), 'hex'), $3::bigint[],
       array_fill(1::bigint, ARRAY[cardinality($3::bigint[])]), array_fill(NULL::bigint, ARRAY[cardinality($3::bigint[])]),
       array_fill(1000000 + i::bigint, ARRAY[cardinality($3::bigint[])]), array_fill(1000000 + i::bigint, ARRAY[cardinality($3::bigint[])]), false,
       now() - i * interval '1 millisecond'
     FROM generate_series(1, $1::integer) AS i`,
    count,
    callers,
    devices,
  );
}

async function erasedOf(erasureId: string): Promise<Record<string, number>> {
  const counts = await rows<{ kind: string; erased: bigint }>(
    'SELECT kind, erased FROM erasure_counts WHERE erasure_id = $1',
    erasureId,
  );
  return Object.fromEntries(counts.map(({ kind, erased }) => [kind, Number(erased)]));
}

/** Turn after turn, as rounds do, whatever fails in between. */
async function eraseToTheEnd(db: Database, erasureId: string, most: number): Promise<void> {
  await vi.waitFor(async () => expect(await eraseOwnRows(db, erasureId, { most, proceed: () => true })).toBe('ended'), {
    timeout: 60_000,
    interval: 10,
  });
}

async function holding(text: string, of: readonly unknown[], work: () => Promise<void>): Promise<void> {
  const held = await service.db.pool.connect();
  try {
    await held.query('BEGIN');
    const { rowCount } = await held.query(text, [...of]);
    expect(rowCount).toBeGreaterThan(0);
    await work();
  } finally {
    await held.query('ROLLBACK');
    held.release();
  }
}

describe('an erasure among the claims of a week', () => {
  it('goes through them in steps of one size, and goes on behind the last one', async () => {
    const [alice, bob] = [await someone(), await someone()];
    await claims(90, [`device:${bob.userId}/phone`], [bob.number, alice.number]);
    await claims(10, [`device:${alice.userId}/phone`, `device:${alice.userId}/never-registered`], [bob.number]);
    const erasureId = await requested(alice);
    const seen = () =>
      rows<{ seen: bigint; left: bigint }>(
        `SELECT count(*) FILTER (WHERE claimed_at <= claims_seen_to) AS seen, count(*) FILTER (WHERE $2 = ANY (device_numbers)) AS left
           FROM claims, erasures WHERE erasure_id = $1`,
        erasureId,
        alice.number,
      );
    const [before] = await rows<{ count: bigint }>('SELECT count(*) FROM claims');
    // The service itself may hold the erasure for a moment, to ask the others again.
    await vi.waitFor(async () => {
      let batches = 2;
      const turn = await eraseOwnRows(service.db, erasureId, { most: 10, proceed: () => batches-- > 0 });
      expect(turn).toBe('interrupted');
    }, 10_000);
    const [middle] = await seen();
    expect(middle?.left).toBeGreaterThan(0n);
    expect(Number(middle?.seen)).toBeGreaterThanOrEqual(20);
    expect(Number(middle?.seen)).toBeLessThan(Number(before?.count));
    expect(90n - (middle?.left ?? 0n)).toBe(BigInt((await erasedOf(erasureId)).claims_blanked ?? 0));

    await eraseToTheEnd(service.db, erasureId, 10);
    expect(await seen()).toMatchObject([{ left: 0n }]);
    expect(await erasedOf(erasureId)).toMatchObject({ claims: 10, claims_blanked: 90, request_ids: 1, users: 1 });
    expect(await rows('SELECT 1 FROM claims WHERE starts_with(caller, $1)', `device:${alice.userId}/`)).toEqual([]);
    expect(await rows('SELECT 1 FROM claims WHERE $1 = ANY (device_numbers)', bob.number)).toHaveLength(90);
  });

  it('leaves the rows of users whose ids begin as the one of the erased user', async () => {
    const alice = await someone();
    const longer = [`${alice.userId}.`, `${alice.userId}0`, `${alice.userId}-1`].map((id) => `device:${id}/phone`);
    await claims(6, longer, [1n]);
    await rows(
      `INSERT INTO request_ids (caller, request_id, method, content_digest)
       SELECT c, gen_random_uuid(), 'm', decode(repeat('00', 32), 'hex') FROM unnest($1::text[]) c`,
      longer,
    );
    await eraseToTheEnd(service.db, await requested(alice), 10);
    expect(await rows('SELECT 1 FROM claims WHERE caller = ANY ($1)', longer)).toHaveLength(6);
    expect(await rows('SELECT 1 FROM request_ids WHERE caller = ANY ($1)', longer)).toHaveLength(3);
  });

  it('ends although no statement may take as long as looking at all of them does', async () => {
    const [alice, bob] = [await someone(), await someone()];
    await claims(200_000, [`device:${bob.userId}/phone`], [bob.number]);
    await claims(50, [`device:${bob.userId}/laptop`], [bob.number, alice.number]);
    await claims(50, [`device:${alice.userId}/phone`], [bob.number]);
    const connectionString = service.db.pool.options.connectionString ?? '';
    const hurried = openDatabase({ url: connectionString, service: 'test', connections: 2, statementTimeoutMs: 60 });
    closing.push(() => hurried.close());
    const slow = service.db.pool.query(
      `SET LOCAL statement_timeout = 30; SELECT count(*) FROM claims WHERE device_numbers && '{${alice.number}}' OR user_ids && '{nobody}'`,
    );
    await expect(slow).rejects.toThrow('statement timeout');
    const erasureId = await requested(alice);
    await eraseToTheEnd(hurried, erasureId, 1_000);
    expect(await erasedOf(erasureId)).toMatchObject({ claims: 50, claims_blanked: 50, users: 1 });
    await rows('TRUNCATE claims');
  }, 120_000);

  it('shares claims with other erasures at the same time, without a deadlock', async () => {
    const users = [await someone(), await someone(), await someone(), await someone()];
    const numbers = users.map(({ number }) => number);
    await claims(400, ['device:somebody/phone', 'device:somebody/laptop'], numbers);
    for (const { userId } of users) await claims(50, [`device:${userId}/phone`], numbers);
    const erasures = await Promise.all(users.map(requested));
    const deadlocks = () => rows('SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()');
    const before = await deadlocks();
    await Promise.all(erasures.map((erasureId) => eraseToTheEnd(service.db, erasureId, 25)));
    expect(await deadlocks()).toEqual(before);
    expect(await rows('SELECT 1 FROM claims WHERE device_numbers && $1::bigint[]', numbers)).toEqual([]);
    for (const erasureId of erasures) {
      const { claims: deleted, claims_blanked } = await erasedOf(erasureId);
      expect(deleted).toBe(50);
      expect(claims_blanked).toBeGreaterThanOrEqual(400);
    }
  });
});

describe('an erasure that cannot go on', () => {
  it.for([
    ['a row of the user', 'SELECT FROM signed_prekeys WHERE device_number = $1 FOR UPDATE'],
    ['a claim that names the user', 'SELECT FROM claims WHERE $1 = ANY (device_numbers) FOR UPDATE'],
  ] as const)('does not keep a later one from its end: somebody holds %s', async ([, text]) => {
    const [alice, bob, carol] = [await someone(), await someone(), await someone()];
    await claims(3, [`device:${carol.userId}/phone`], [alice.number, carol.number]);
    const [first, second] = [await requested(alice), await requested(bob)];
    await holding(text, [alice.number], async () => {
      await reportAll(first);
      await reportAll(second);
      await ended(second);
      expect(await rows('SELECT 1 FROM users WHERE user_id = $1', alice.userId)).toHaveLength(1);
    });
    await ended(first);
    expect(await rows('SELECT 1 FROM claims WHERE $1 = ANY (device_numbers)', alice.number)).toEqual([]);
    expect(await erasedOf(first)).toMatchObject({ claims_blanked: 3, signed_prekeys: 1, users: 1 });
  });
});
