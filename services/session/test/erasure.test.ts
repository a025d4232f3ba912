import { randomUUID } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { timestampFromDate } from '@bufbuild/protobuf/wkt';
import { KeyRequestKind, type UserErased } from '@keytrail/contracts';
import { keyRequestEnded, publishHint, userErased, userErasureRequested } from '@keytrail/events';
import { startTelemetry, type Telemetry } from '@keytrail/telemetry';
import type pg from 'pg';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { startForgetting } from '../src/jobs/forget-old-ids.ts';
import { purgeEndedKeyRequests } from '../src/store/key-requests.ts';
import { createPerson, type MadeSession, makeSession, type Person, reseal, type TestDevice } from './people.ts';
import { keyOf } from './stand-ins.ts';
import { offersTo, startWorld, type World } from './world.ts';

const retention = readFileSync(join(import.meta.dirname, '../../../docs/retention.md'), 'utf8');

let world: World;
let telemetry: Telemetry;
beforeAll(async () => {
  world = await startWorld({ erasureBatch: 1, offerMs: 60_000, waitMs: 60_000, offersAtOnce: 1 });
  telemetry = startTelemetry({ service: 'session', config: world.config });
}, 60_000);
afterAll(async () => {
  await telemetry?.shutdown();
  await world?.stop();
});

async function shared(initiator: TestDevice, covered: TestDevice[], people: Person[], withheld: TestDevice[] = []) {
  const made = makeSession({ initiator, covered, withheld });
  await world.store(made);
  world.peers.commit(made, people);
  return made;
}

function named({ session }: MadeSession) {
  return { conversationId: session.conversationId, sessionId: session.sessionId };
}

/** The device asks for a key, and the holder, then the only one that is online for it, answers. */
async function recovered(made: MadeSession, device: TestDevice, holder: TestDevice): Promise<void> {
  world.peers.attach(holder);
  const asked = { ...named(made), requestId: randomUUID(), kind: KeyRequestKind.MISSING };
  const { keyRequest } = await world.as(device).requestKey(asked);
  const { keyRequestId = '', attempt = 0 } = keyRequest ?? {};
  const envelope = reseal(made, holder, device, attempt);
  await world.as(holder).fulfillKeyRequest({ requestId: randomUUID(), keyRequestId, attempt, envelope });
}

function ask(erasureId: string, person: Person): Promise<void> {
  return publishHint(world.bus, userErasureRequested, {
    erasureId,
    userId: person.userId,
    deviceIds: person.devices.map(({ deviceId }) => deviceId),
    requestedAt: timestampFromDate(new Date()),
  });
}

function countsOf({ report }: UserErased) {
  return Object.fromEntries(
    (report?.counts ?? []).map(({ kind, erased, kept }) => [kind, { erased: Number(erased), kept: Number(kept) }]),
  );
}

async function erase(person: Person, erasureId: string = randomUUID()) {
  await ask(erasureId, person);
  return countsOf(await world.event(userErased.session, (event) => event.erasureId === erasureId));
}

/** Table and column of each text or bytes that are, or have within them, one of these. */
async function placesWith(...searched: readonly (string | Uint8Array)[]): Promise<string[]> {
  const { rows: columns } = await world.sql.query<{ table_name: string; column_name: string; data_type: string }>(
    `SELECT table_name, column_name, data_type FROM information_schema.columns
     WHERE table_schema = 'public' AND data_type IN ('text', 'bytea')`,
  );
  const found: string[] = [];
  for (const { table_name, column_name, data_type } of columns) {
    const bytes = data_type === 'bytea' ? column_name : `convert_to(${column_name}, 'UTF8')`;
    const { rows } = await world.sql.query(
      `SELECT 1 FROM ${table_name}, unnest($1::bytea[]) AS searched WHERE position(searched IN ${bytes}) > 0 LIMIT 1`,
      [searched.map((one) => Buffer.from(one as Uint8Array))],
    );
    if (rows.length > 0) found.push(`${table_name}.${column_name}`);
  }
  return found.sort();
}

/** What docs/retention.md says is kept of an erased user. */
const kept = [...retention.matchAll(/^\| `session: ([a-z_.]+)` \|/gm)].map(([, place]) => place ?? '');

async function constraintOf(work: Promise<unknown>): Promise<string | undefined> {
  try {
    await work;
    return undefined;
  } catch (error) {
    const { constraint } = error as { constraint?: string };
    if (constraint === undefined) throw error;
    return constraint;
  }
}

describe('an erased user', () => {
  it('leaves nothing but what others need to decrypt: sessions and envelopes that the user made', async () => {
    const [alice, bob] = [createPerson('alice'), createPerson('bob')];
    const [phone, laptop] = [alice.addDevice(randomUUID()), alice.addDevice(randomUUID())];
    const other = bob.addDevice();
    const made = await shared(phone, [phone, laptop, other], [alice, bob]);
    const theirs = await shared(other, [other], [alice, bob], [phone, laptop]);
    const tablet = bob.addDevice();
    await recovered(made, tablet, phone);
    await recovered(theirs, laptop, other);
    await world.operator.findKeyRequests({ userId: alice.userId, deviceId: laptop.deviceId });

    const counts = await erase(alice);
    expect(counts).toEqual({
      envelopes: { erased: 3, kept: 2 },
      withholdings: { erased: 2, kept: 0 },
      sessions: { erased: 0, kept: 1 },
      offers: { erased: 1, kept: 0 },
      key_requests: { erased: 1, kept: 0 },
      request_ids: { erased: 2, kept: 0 },
      revoked_devices: { erased: 0, kept: 2 },
    });
    const ids = [alice.userId, phone.deviceId, laptop.deviceId];
    const keys = [phone, laptop].flatMap(({ identityKey, signingKey, certificate }) => [
      identityKey.publicKey,
      signingKey.publicKey,
      certificate.rootKey,
      certificate.signature,
    ]);
    // dead_letters have what failed: nothing here. Events leave the outbox when they are published.
    await vi.waitFor(
      async () =>
        expect(await placesWith(...ids, ...keys)).toEqual(kept.filter((place) => !place.startsWith('dead_')).sort()),
      10_000,
    );
    for (const device of [other, tablet]) {
      const { envelope } = await world.as(device).getInitialSession(named(made));
      expect(envelope?.sealer).toMatchObject({ userId: alice.userId, deviceId: phone.deviceId });
    }
  });

  it('takes nothing from the others: their sessions stay whole, stored again they are what they were', async () => {
    const [alice, bob] = [createPerson('alice'), createPerson('bob')];
    const [phone, other] = [alice.addDevice(), bob.addDevice()];
    const made = await shared(other, [other, phone], [alice, bob]);
    await erase(alice);
    const again = await world.asConversation.storeSession(made.request);
    expect(again).toMatchObject({ alreadyStored: true, envelopesWritten: 2, envelopesExpected: 2 });
    const { conversationId, sessionId } = named(made);
    expect(await world.asConversation.discardSession({ conversationId, sessionId })).toMatchObject({ discarded: true });
  });

  it('is told the end of open requests, and what was offered to the user is offered to the next holder', async () => {
    const [alice, bob, carol] = [createPerson('alice'), createPerson('bob'), createPerson('carol')];
    const [asked, next, requester] = [alice.addDevice(), carol.addDevice(), bob.addDevice()];
    const own = await shared(next, [next], [alice, carol]);
    const { keyRequest: waiting } = await world
      .as(asked)
      .requestKey({ ...named(own), requestId: randomUUID(), kind: KeyRequestKind.MISSING });
    const made = await shared(asked, [asked, next], [alice, bob, carol]);
    world.peers.attach(asked);
    await world.as(requester).requestKey({ ...named(made), requestId: randomUUID(), kind: KeyRequestKind.MISSING });
    expect(await offersTo(world.as(asked))).toHaveLength(1);
    world.peers.attach(next);
    world.peers.revoked.set(keyOf(asked), new Date());

    const counts = await erase(alice);
    expect(counts).toMatchObject({ offers: { erased: 1 }, key_requests: { erased: 1 } });
    const ended = await world.event(keyRequestEnded, ({ keyRequestId }) => keyRequestId === waiting?.keyRequestId);
    expect(ended).toMatchObject({ state: 'CANCELLED', because: 'requester_erased' });
    await vi.waitFor(async () => expect(await offersTo(world.as(next))).toHaveLength(1), 10_000);
    expect(await offersTo(world.as(asked))).toEqual([]);
  });

  it('is erased once and reported each time that it is asked for', async () => {
    const [alice, bob] = [createPerson('alice'), createPerson('bob')];
    const [phone, other] = [alice.addDevice(), bob.addDevice()];
    await shared(other, [other, phone], [alice, bob]);
    const erasureId = randomUUID();
    const reports: UserErased[] = [];
    const heard = world.event(userErased.session, (event) => {
      if (event.erasureId === erasureId && !reports.includes(event)) reports.push(event);
      return reports.length >= 3;
    });
    await Promise.all([ask(erasureId, alice), ask(erasureId, alice)]);
    await ask(erasureId, alice);
    await heard;
    for (const report of reports) expect(countsOf(report)).toEqual(countsOf(reports[0] as UserErased));
    expect(countsOf(reports[0] as UserErased)).toMatchObject({ envelopes: { erased: 1, kept: 0 } });
  });

  it('is erased to the end, and counted right, although the database is lost in the middle', async () => {
    const [alice, bob] = [createPerson('alice'), createPerson('bob')];
    const [phone, other] = [alice.addDevice(), bob.addDevice()];
    const made = [];
    for (let i = 0; i < 4; i++) made.push(await shared(other, [other, phone], [alice, bob]));
    const last = made
      .map(named)
      .sort((a, b) => (a.conversationId < b.conversationId ? -1 : 1))
      .at(-1);
    const erasureId = randomUUID();
    const holding = await world.sql.connect();
    try {
      await holding.query('BEGIN');
      await holding.query('SELECT FROM envelopes WHERE conversation_id = $1 FOR UPDATE', [last?.conversationId]);
      await ask(erasureId, alice);
      const waiting = await vi.waitFor(async () => {
        const { rows } = await world.sql.query(
          `SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%envelopes_gone%'`,
        );
        expect(rows).toHaveLength(1);
        return rows[0].pid as number;
      }, 10_000);
      const { rows } = await world.sql.query(
        `SELECT erased::int FROM erasure_counts WHERE erasure_id = $1 AND kind = 'envelopes'`,
        [erasureId],
      );
      expect(rows).toEqual([{ erased: 3 }]);
      await world.sql.query('SELECT pg_terminate_backend($1)', [waiting]);
    } finally {
      await holding.query('ROLLBACK');
      holding.release();
    }
    const report = await world.event(userErased.session, (event) => event.erasureId === erasureId);
    expect(countsOf(report)).toMatchObject({ envelopes: { erased: 4, kept: 0 } });
  });

  it('is erased by a round although the erasure of another one fails', async () => {
    const [alice, bob, carol] = [createPerson('alice'), createPerson('bob'), createPerson('carol')];
    const [phone, other] = [alice.addDevice(), bob.addDevice()];
    await shared(other, [other, phone, carol.addDevice()], [alice, bob, carol]);
    await world.sql.query(
      `CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no room'; END $$;
       CREATE TRIGGER failing BEFORE DELETE ON envelopes FOR EACH ROW WHEN (OLD.user_id = '${alice.userId}') EXECUTE FUNCTION fail()`,
    );
    const [first, second] = [randomUUID(), randomUUID()];
    for (const [erasureId, { userId }, before] of [
      [first, alice, 2],
      [second, carol, 1],
    ] as const)
      await world.sql.query(
        `INSERT INTO erasures (erasure_id, user_id, requested_at, noted_at) VALUES ($1, $2, now(), now() - $3 * interval '1 minute')`,
        [erasureId, userId, before],
      );
    const another = await world.another({ erasureRoundMs: 20 });
    try {
      const report = await world.event(userErased.session, (event) => event.erasureId === second);
      expect(countsOf(report)).toMatchObject({ envelopes: { erased: 1 } });
      await world.sql.query('DROP TRIGGER failing ON envelopes');
      await world.event(userErased.session, (event) => event.erasureId === first);
    } finally {
      await another.stop();
      await world.sql.query('DROP FUNCTION fail CASCADE');
    }
  });

  it('is gone through beside a session that is being discarded: neither waits for what the other holds', async () => {
    const [alice, bob] = [createPerson('alice'), createPerson('bob')];
    const [phone, other] = [alice.addDevice(), bob.addDevice()];
    const { conversationId } = named(await shared(other, [other, phone], [alice, bob]));
    const erasureId = randomUUID();
    const discarding = await world.sql.connect();
    try {
      await discarding.query('BEGIN');
      await discarding.query('SELECT FROM sessions WHERE conversation_id = $1 FOR UPDATE', [conversationId]);
      await ask(erasureId, alice);
      await vi.waitFor(async () => {
        const { rows } = await world.sql.query(
          `SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%envelopes_gone%'`,
        );
        expect(rows).toHaveLength(1);
      }, 10_000);
      await discarding.query('SELECT FROM envelopes WHERE conversation_id = $1 FOR UPDATE NOWAIT', [conversationId]);
      await discarding.query('DELETE FROM sessions WHERE conversation_id = $1', [conversationId]);
      await discarding.query('COMMIT');
    } finally {
      await discarding.query('ROLLBACK');
      discarding.release();
    }
    const report = await world.event(userErased.session, (event) => event.erasureId === erasureId);
    expect(countsOf(report)).toMatchObject({ envelopes: { erased: 0, kept: 0 } });
  });

  it('is taken up by a round when every event of it is lost, and forgotten after its time', async () => {
    const [alice, bob] = [createPerson('alice'), createPerson('bob')];
    const [phone, other] = [alice.addDevice(), bob.addDevice()];
    await shared(other, [other, phone], [alice, bob]);
    const erasureId = randomUUID();
    await world.sql.query('INSERT INTO erasures (erasure_id, user_id, requested_at) VALUES ($1, $2, now())', [
      erasureId,
      alice.userId,
    ]);
    const another = await world.another({ erasureRoundMs: 20, erasedUserRetentionMs: 1 });
    try {
      const report = await world.event(userErased.session, (event) => event.erasureId === erasureId);
      expect(countsOf(report)).toMatchObject({ envelopes: { erased: 1 } });
      // The header of somebody else's session is signed: it names the roster's device lists as long as the session is there.
      await vi.waitFor(async () => expect(await placesWith(alice.userId)).toEqual(['sessions.header']), 10_000);
    } finally {
      await another.stop();
    }
  });
});

describe('the purge', () => {
  it('forgets all that is past its time in one go, however much it is', async () => {
    await world.sql.query(
      `INSERT INTO request_ids (caller, request_id, method, content_digest, created_at)
       SELECT 'somebody phone', gen_random_uuid(), 'm', decode(repeat('00', 32), 'hex'), now() - interval '8 days'
       FROM generate_series(1, 20500)`,
    );
    const forgetting = startForgetting(world.service.db, telemetry.log, {
      everyMs: 3_600_000,
      endedKeyRequestRetentionMs: 3_600_000,
      auditLogRetentionMs: 3_600_000,
    });
    try {
      await vi.waitFor(
        async () => {
          const { rows } = await world.sql.query(
            `SELECT count(*)::int AS left FROM request_ids WHERE caller = 'somebody phone'`,
          );
          expect(rows).toEqual([{ left: 0 }]);
        },
        { timeout: 20_000 },
      );
    } finally {
      await forgetting.stop();
    }
  });

  it('forgets requests that ended long ago without a key, and offers of all that ended; open and fulfilled ones stay', async () => {
    const [alice, bob] = [createPerson('alice'), createPerson('bob')];
    const [holder, late] = [alice.addDevice(), bob.addDevice()];
    const { conversationId, sessionId } = named(await shared(holder, [holder], [alice, bob]));
    const states = ['EXPIRED', 'CANCELLED', 'UNFULFILLABLE', 'FULFILLED', 'WAITING_FOR_HOLDER'];
    for (const state of states) {
      const ended = state !== 'WAITING_FOR_HOLDER';
      await world.sql.query(
        `WITH request AS (
           INSERT INTO key_requests (key_request_id, conversation_id, session_id, epoch, user_id, device_id, kind, state, attempt_base, attempt,
             accepted_attempt, holders, requested_at, next_attempt_at, expires_at, ended_at, ended_because, traceparent, writer_build)
           VALUES ($1, $2, $3, 1, $4, $5, 'MISSING', $6, 0, 1, $7, 1, now(), 'infinity', 'infinity', $8, $9, '', 'build')
           RETURNING key_request_id)
         INSERT INTO offers (key_request_id, attempt, user_id, device_id, offered_at, lapses_at)
         SELECT key_request_id, 1, $10, $11, now() - interval '10 seconds', now() FROM request`,
        [
          randomUUID(),
          conversationId,
          sessionId,
          late.userId,
          late.deviceId,
          state,
          state === 'FULFILLED' ? 1 : null,
          ended ? new Date(Date.now() - 10_000) : null,
          ended ? 'a reason' : null,
          holder.userId,
          holder.deviceId,
        ],
      );
    }
    const left = async (from: string) => {
      const { rows } = await world.sql.query<{ state: string }>(
        `SELECT state FROM ${from} WHERE user_id IN ($1, $2) ORDER BY state`,
        [late.userId, holder.userId],
      );
      return rows.map(({ state }) => state);
    };
    expect(await purgeEndedKeyRequests(world.service.db, 3_600_000)).toBe(0);
    expect(await purgeEndedKeyRequests(world.service.db, 5_000)).toBe(4);
    expect(await left('key_requests')).toEqual(['FULFILLED', 'WAITING_FOR_HOLDER']);
    expect(
      await left('(SELECT state, o.user_id FROM offers o JOIN key_requests k USING (key_request_id)) AS offered'),
    ).toEqual(['WAITING_FOR_HOLDER']);
    expect(await purgeEndedKeyRequests(world.service.db, 5_000)).toBe(0);
  });
});

describe('the database, by straight SQL,', () => {
  let client: pg.PoolClient;
  beforeAll(async () => {
    client = await world.sql.connect();
  });
  afterAll(() => client?.release());

  async function storedFor(...people: Person[]) {
    const initiator = people[0]?.devices[0];
    if (!initiator) throw new Error('nobody');
    const made = await shared(
      initiator,
      people.flatMap(({ devices }) => devices),
      people,
    );
    return named(made);
  }
  function people() {
    const [alice, bob] = [createPerson('alice'), createPerson('bob')];
    alice.addDevice();
    bob.addDevice();
    return [alice, bob] as const;
  }
  const note = (userId: string) =>
    world.sql.query(
      'INSERT INTO erasures (erasure_id, user_id, requested_at, erased_at) VALUES ($1, $2, now(), now())',
      [randomUUID(), userId],
    );
  const take = (conversationId: string, userId: string) =>
    world.sql.query('DELETE FROM envelopes WHERE conversation_id = $1 AND user_id = $2', [conversationId, userId]);

  it('lets the envelopes of an erased user go, and those of nobody else', async () => {
    const [alice, bob] = people();
    const { conversationId } = await storedFor(alice, bob);
    expect(await constraintOf(take(conversationId, bob.userId))).toBe('session_is_whole');
    await note(bob.userId);
    expect(await constraintOf(take(conversationId, bob.userId))).toBeUndefined();
    expect(await constraintOf(take(conversationId, alice.userId))).toBe('session_is_whole');
    const { rows } = await world.sql.query(
      'SELECT envelopes, withholdings FROM erased_parts WHERE conversation_id = $1',
      [conversationId],
    );
    expect(rows).toEqual([{ envelopes: 1, withholdings: 0 }]);
  });

  it('takes no other envelope in the place of an erased one', async () => {
    const [alice, bob] = people();
    const { conversationId } = await storedFor(alice, bob);
    await note(bob.userId);
    await take(conversationId, bob.userId);
    const slipped = world.sql.query(
      `INSERT INTO envelopes SELECT (jsonb_populate_record(e, '{"device_id": "slipped-in"}')).* FROM envelopes e
       WHERE conversation_id = $1 AND user_id = $2`,
      [conversationId, alice.userId],
    );
    expect(await constraintOf(slipped)).toBe('session_is_whole');
  });

  it('counts erased parts itself: nobody writes the counts', async () => {
    const [alice, bob] = people();
    const { conversationId, sessionId } = await storedFor(alice, bob);
    const claim = world.sql.query('INSERT INTO erased_parts VALUES ($1, $2, 1, 0)', [conversationId, sessionId]);
    expect(await constraintOf(claim)).toBe('erased_parts_are_counted');
    await note(bob.userId);
    await take(conversationId, bob.userId);
    for (const change of ['UPDATE erased_parts SET envelopes = 2', 'DELETE FROM erased_parts'])
      expect(await constraintOf(world.sql.query(`${change} WHERE conversation_id = $1`, [conversationId]))).toBe(
        'erased_parts_are_counted',
      );
  });

  it('writes nothing for an erased user any more, and skips an offer', async () => {
    const [alice, bob] = people();
    const { conversationId, sessionId } = await storedFor(alice, bob);
    await note(bob.userId);
    const request = (userId: string) =>
      world.sql.query<{ key_request_id: string }>(
        `INSERT INTO key_requests (key_request_id, conversation_id, session_id, epoch, user_id, device_id, kind, state, attempt_base,
           attempt, holders, requested_at, next_attempt_at, expires_at, traceparent, writer_build)
         VALUES ($1, $2, $3, 1, $4, 'late', 'MISSING', 'WAITING_FOR_HOLDER', 0, 1, 1, now(), now() + interval '1 hour',
           now() + interval '1 hour', '', 'build') RETURNING key_request_id`,
        [randomUUID(), conversationId, sessionId, userId],
      );
    expect(await constraintOf(request(bob.userId))).toBe('not_of_erased_users');
    const withheld = world.sql.query(
      `INSERT INTO withholdings VALUES ($1, $2, $3, 'late', 'NOT_TRUSTED', decode(repeat('00', 64), 'hex'))`,
      [conversationId, sessionId, bob.userId],
    );
    expect(await constraintOf(withheld)).toBe('not_of_erased_users');
    const { rows } = await request(alice.userId);
    const offered = await world.sql.query(
      `INSERT INTO offers (key_request_id, attempt, user_id, device_id, offered_at, lapses_at)
       SELECT $1, 1, u, 'device', now(), now() + interval '1 hour' FROM unnest($2::text[]) u RETURNING user_id`,
      [rows[0]?.key_request_id, [alice.userId, bob.userId]],
    );
    expect(offered.rows).toEqual([{ user_id: alice.userId }]);
  });

  it('notes an erasure only when whoever looked before has committed', async () => {
    const [alice, bob] = people();
    const { conversationId, sessionId } = await storedFor(alice, bob);
    await client.query('BEGIN');
    await client.query(
      `INSERT INTO withholdings SELECT $1, $2, $3, 'late', 'NOT_TRUSTED', decode(repeat('00', 64), 'hex') WHERE false`,
      [conversationId, sessionId, bob.userId],
    );
    const free = async () =>
      (await world.sql.query(`SELECT pg_try_advisory_xact_lock(hashtext('erasures')) AS free`)).rows[0].free;
    expect(await free()).toBe(false);
    await client.query('ROLLBACK');
    expect(await free()).toBe(true);
  });
});
