import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { servicesWithDatabase } from '@keytrail/local/constellation';
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { type Chat, startChats } from './chats.ts';
import { type DoctorWorld, startDoctorWorld, tokenScript } from './doctor-world.ts';

const page = readFileSync(join(import.meta.dirname, '../../docs/checks/reproduction.md'), 'utf8');
const saidToStay = Object.fromEntries(
  [...page.matchAll(/^\| `([a-z-]+: [a-z_]+)` \| (\d+) \|/gm)].map(([, table = '', rows]) => [table, Number(rows)]),
);

let doctors: DoctorWorld;
let chat: Chat;
beforeAll(async () => {
  doctors = await startDoctorWorld('doctor-rows', {
    env: { KEYTRAIL_KEY_REQUEST_SWEEP_MS: '3600000', KEYTRAIL_FENCE_LOOK_MS: '100', KEYTRAIL_ERASURE_ROUND_MS: '500' },
  });
  [chat] = (await startChats(doctors.world, 1)) as [Chat];
}, 120_000);
afterAll(async () => {
  await doctors?.[Symbol.asyncDispose]();
});

type Finding = {
  readonly code: string;
  readonly status: string;
  readonly summary: string;
  readonly hint: string;
  readonly places: readonly { readonly evidence: Readonly<Record<string, string>> }[];
};

/** REPRODUCTION alone, as it ends with this command for tokens. */
async function reproduce(command: string) {
  const ran = await doctors.doctor(['-o', 'json', '--only', 'REPRODUCTION'], { KEYTRAIL_TOKEN_COMMAND: command });
  const [found] = (JSON.parse(ran.out) as { checks: Finding[] }).checks;
  if (!found) throw new Error(`there is no finding: ${ran.err}`);
  return { code: ran.code, found, evidence: found.places[0]?.evidence ?? {} };
}

/** Tables with rows in which one of the texts stands, in a column of any type, and how many; counts of erasures by their id. */
async function rowsWith(texts: readonly string[]): Promise<Record<string, number>> {
  const found: Record<string, number> = {};
  const patterns = texts.flatMap((text) => [`%${text}%`, `%${Buffer.from(text).toString('hex')}%`]);
  for (const service of servicesWithDatabase) {
    const [tables] = await doctors.past(
      service,
      "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public' AND table_type = 'BASE TABLE'",
    );
    for (const { table_name: table } of tables?.rows ?? []) {
      const list = patterns.map((pattern) => `'${pattern}'`).join(', ');
      const [counted] = await doctors.past(
        service,
        `SELECT count(*)::int AS rows FROM ${table} AS each WHERE to_jsonb(each)::text LIKE ANY (ARRAY[${list}])`,
      );
      if (counted?.rows[0].rows > 0) found[`${service}: ${table}`] = counted?.rows[0].rows;
    }
  }
  return found;
}

async function devicesOf(users: string): Promise<number> {
  const [left] = await doctors.past(
    'identity-keys',
    `SELECT count(*)::int AS devices FROM devices WHERE user_id IN ('${users.replace(' ', "', '")}')`,
  );
  return left?.rows[0].devices;
}

/** The ids of the two erasures, which name the counts that stay. */
async function erasuresOf(users: string): Promise<string[]> {
  const [erasures] = await doctors.past(
    'identity-keys',
    `SELECT erasure_id::text AS id FROM erasures WHERE user_id IN ('${users.replace(' ', "', '")}')`,
  );
  return (erasures?.rows ?? []).map(({ id }) => id);
}

interface Made {
  readonly users: string;
  readonly conversationId: string;
  readonly sessionId: string;
}

/** Once all is erased: rows in which the users, what they made, or their erasures stand. */
async function leavesWhatItsPageSays({ users, conversationId, sessionId }: Made): Promise<void> {
  expect(users).toMatch(/^doctor\.[0-9a-f]{8}\.a doctor\.[0-9a-f]{8}\.b$/);
  expect([conversationId, sessionId].map((id) => id.length > 30)).toEqual([true, true]);
  const texts = [users.slice(0, 'doctor.01234567'.length), conversationId, sessionId, ...(await erasuresOf(users))];
  await vi.waitFor(async () => expect(await rowsWith(texts)).toEqual(saidToStay), { timeout: 30_000, interval: 250 });
}

test('finds nothing wrong with a sound fleet: a key gets from one device to another, and what stays of it is what its page says', async () => {
  const { constellation } = doctors.world;
  const KEYTRAIL_TOKEN_COMMAND = tokenScript(doctors.release.folder, constellation.issuer.url);
  const ran = await doctors.doctor(['-o', 'json'], { KEYTRAIL_TOKEN_COMMAND });
  const { status, checks } = JSON.parse(ran.out) as { status: string; checks: Finding[] };
  expect(checks.filter((check) => check.status !== 'ok')).toEqual([]);
  expect({ code: ran.code, status }).toEqual({ code: 0, status: 'ok' });
  const { evidence = {} } = checks.find(({ code }) => code === 'REPRODUCTION')?.places[0] ?? {};
  expect(evidence.missTraceId).toMatch(/^[0-9a-f]{32}$/);
  const { users = '', conversationId = '', sessionId = '' } = evidence;
  await leavesWhatItsPageSays({ users, conversationId, sessionId });
}, 60_000);

describe('a key that does not get there, or is not cleaned up after:', () => {
  test('the step is named, and both users are erased', async () => {
    const { constellation } = doctors.world;
    const tokens = tokenScript(doctors.release.folder, constellation.issuer.url);
    // The device that comes later is given the token of another.
    const mistaken = join(doctors.release.folder, 'mistaken-token.sh');
    writeFileSync(mistaken, `exec ${tokens} "$1" "$(echo "$2" | sed s/tablet/another/)"\n`);
    const { code, found, evidence } = await reproduce(`sh ${mistaken}`);
    expect(found).toMatchObject({ status: 'fail', summary: expect.stringMatching(/^it ended at “add a device”: /) });
    expect(code).toBe(1);
    expect(evidence.notErased).toBeUndefined();
    expect(evidence['add a device']).toBeUndefined();
    expect(await devicesOf(evidence.users ?? '')).toBe(0);
  }, 60_000);

  test('a service that does not get to erasing is named, and what is left goes on its own', async () => {
    const { constellation } = doctors.world;
    const hold = new pg.Client(constellation.databaseUrls.session);
    await hold.connect();
    let evidence: Record<string, string> = {};
    try {
      await hold.query('BEGIN');
      await hold.query('LOCK TABLE erasures IN SHARE MODE');
      const ran = await reproduce(tokenScript(doctors.release.folder, constellation.issuer.url));
      expect(ran.found).toMatchObject({
        status: 'warn',
        summary: 'a key got from one device to another, but not all throw-away users are erased',
        hint: expect.stringMatching(/go on by themselves/),
      });
      expect(ran.code).toBe(4);
      expect(ran.evidence.notErased).toMatch(
        /^doctor\.[0-9a-f]{8}\.a in identity-keys, session \(erasure [0-9a-f-]{36}\); doctor\.[0-9a-f]{8}\.b in identity-keys, session \(erasure [0-9a-f-]{36}\)$/,
      );
      evidence = ran.evidence;
    } finally {
      await hold.query('ROLLBACK');
      await hold.end();
    }
    const { users = '', conversationId = '', sessionId = '' } = evidence;
    await leavesWhatItsPageSays({ users, conversationId, sessionId });
  }, 90_000);

  test('users whom nobody erases are named, with why', async () => {
    const { constellation } = doctors.world;
    // Nothing is erased that is not put down.
    await doctors.past('identity-keys', 'ALTER TABLE audit_log RENAME TO audit_log_elsewhere');
    const ran = reproduce(tokenScript(doctors.release.folder, constellation.issuer.url));
    const { found, evidence } = await ran.finally(() =>
      doctors.past('identity-keys', 'ALTER TABLE audit_log_elsewhere RENAME TO audit_log'),
    );
    expect(found).toMatchObject({ status: 'warn', hint: expect.stringMatching(/^nobody erases those that are named/) });
    expect(evidence.notErased).toMatch(
      /^doctor\.[0-9a-f]{8}\.a \(INTERNAL.*\); doctor\.[0-9a-f]{8}\.b \(INTERNAL.*\)$/,
    );
    expect(await devicesOf(evidence.users ?? '')).toBe(3);
  }, 60_000);
});

describe('a fault of rows is named, and gone when it is healed:', () => {
  test('a session without its ephemeral key, and the constraint that would have refused it (H2)', async () => {
    const { conversationId } = chat;
    const [definition] = await doctors.past(
      'session',
      "SELECT pg_get_constraintdef(oid) AS text FROM pg_constraint WHERE conname = 'sessions_native_is_complete'",
      'ALTER TABLE sessions DROP CONSTRAINT sessions_native_is_complete',
      'CREATE TABLE kept_keys AS SELECT conversation_id, session_id, initiator_ephemeral_key FROM sessions',
      `UPDATE sessions SET initiator_ephemeral_key = NULL WHERE conversation_id = '${conversationId}'`,
    );
    await doctors.names('CONSTRAINTS', 'fail', /sessions\.sessions_native_is_complete is missing/);
    await doctors.names('SESSION_ROWS', 'fail', /1 of \d+ session rows lack their ephemeral key/);
    await doctors.names('SESSION_ROWS', 'fail', /1 of \d+ session rows lack their ephemeral key/, '--direct');
    await doctors.past(
      'session',
      'UPDATE sessions s SET initiator_ephemeral_key = k.initiator_ephemeral_key FROM kept_keys k WHERE (k.conversation_id, k.session_id) = (s.conversation_id, s.session_id)',
      'DROP TABLE kept_keys',
      `ALTER TABLE sessions ADD CONSTRAINT sessions_native_is_complete ${definition?.rows[0].text} NOT VALID`,
    );
    await doctors.names('CONSTRAINTS', 'fail', /sessions_native_is_complete is not validated/);
    await doctors.past('session', 'ALTER TABLE sessions VALIDATE CONSTRAINT sessions_native_is_complete');
    await doctors.isOkAgain('CONSTRAINTS,SESSION_ROWS');
  });

  test('a trigger that is switched off', async () => {
    await doctors.past('session', 'ALTER TABLE sessions DISABLE TRIGGER sessions_immutable');
    await doctors.names('CONSTRAINTS', 'fail', /sessions\.sessions_immutable is not enabled/);
    await doctors.past('session', 'ALTER TABLE sessions ENABLE TRIGGER sessions_immutable');
    await doctors.isOkAgain('CONSTRAINTS');
  });

  test('a device without its identity key (H3)', async () => {
    await doctors.past(
      'identity-keys',
      'ALTER TABLE devices ALTER COLUMN identity_key DROP NOT NULL',
      'CREATE TABLE kept_keys AS SELECT device_number, identity_key FROM devices',
      `UPDATE devices SET identity_key = NULL WHERE user_id = '${chat.aliceId}'`,
    );
    await doctors.names('IDENTITY_KEYS', 'fail', /1 of \d+ devices lack keys, the first its identity key/);
    await doctors.names('CONSTRAINTS', 'fail', /devices\.identity_key may be NULL/);
    await doctors.past(
      'identity-keys',
      'UPDATE devices d SET identity_key = k.identity_key FROM kept_keys k WHERE k.device_number = d.device_number',
      'DROP TABLE kept_keys',
      'ALTER TABLE devices ALTER COLUMN identity_key SET NOT NULL',
    );
    await doctors.isOkAgain('IDENTITY_KEYS,CONSTRAINTS');
  });

  test('a conversation whose session is not stored (H4)', async () => {
    const rename = (from: string, to: string) =>
      doctors.past('session', `UPDATE sessions SET session_id = '${to}' WHERE session_id = '${from}'`);
    await rename(chat.sessionId, 'elsewhere');
    await doctors.names('CONVERSATION_SESSIONS', 'fail', /1 conversations have a session that is not stored/);
    await doctors.names('CONVERSATION_SESSIONS', 'fail', /1 conversations have a session that/, '--direct');
    await rename('elsewhere', chat.sessionId);
    await doctors.isOkAgain('CONVERSATION_SESSIONS');
  });

  test('a conversation without the epoch that it is in (H4)', async () => {
    const move = (epoch: number) =>
      doctors.past(
        'conversation',
        `UPDATE conversations SET epoch = ${epoch} WHERE conversation_id = '${chat.conversationId}'`,
      );
    await move(7);
    await doctors.names('CONVERSATION_SESSIONS', 'fail', /1 of \d+ conversations are in an epoch that has no row/);
    await move(1);
    await doctors.isOkAgain('CONVERSATION_SESSIONS');
  });

  test('an envelope that is gone', async () => {
    await doctors.past(
      'session',
      `CREATE TABLE kept_envelopes AS SELECT * FROM envelopes WHERE session_id = '${chat.sessionId}' LIMIT 1`,
      'DELETE FROM envelopes e USING kept_envelopes k WHERE (e.session_id, e.user_id, e.device_id) = (k.session_id, k.user_id, k.device_id)',
    );
    await doctors.names('ENVELOPE_COUNTS', 'fail', /1 of \d+ sessions do not have what they were stored with/);
    await doctors.past('session', 'INSERT INTO envelopes SELECT * FROM kept_envelopes', 'DROP TABLE kept_envelopes');
    await doctors.isOkAgain('ENVELOPE_COUNTS');
  });

  test('a database that went back in time, until an operator has accepted it', async () => {
    // As the runbook has a restore made known that nothing could notice.
    await doctors.past('conversation', "UPDATE restore_fence SET place = 'unknown'");
    await doctors.comesToName('DATABASE_RESTORED', 'fail', /the database went back in time: it is on another server/);
    await doctors.names('DATABASE_RESTORED', 'fail', /the database went back in time/, '--direct');
    expect(await doctors.keytrail(['fence', 'accept', '--note', 'a drill'])).toMatchObject({ code: 0 });
    await doctors.isOkAgain('DATABASE_RESTORED');
  });

  test('a key request that is open for long, and one that nobody looks at', async () => {
    await chat.alice.detach();
    await chat.bob.detach();
    await chat.tablet.attach();
    await chat.tablet.requestKey(chat.conversationId, chat.sessionId);
    const set = (text: string) => doctors.past('session', `UPDATE key_requests SET ${text}`);
    await set("requested_at = now() - interval '2 hours', next_attempt_at = now() + interval '1 hour'");
    await doctors.names('OLDEST_OPEN_REQUEST', 'warn', /1 key requests are open, the oldest for 1[12]\d min/);
    await set("next_attempt_at = now() - interval '10 minutes'");
    await doctors.names('OLDEST_OPEN_REQUEST', 'fail', /key requests are not looked at/);
    await set("next_attempt_at = now() + interval '1 hour', holders = 0");
    await doctors.names('OLDEST_OPEN_REQUEST', 'fail', /key requests cannot be looked at/);
    await set('requested_at = now(), next_attempt_at = now()');
    await doctors.isOkAgain('OLDEST_OPEN_REQUEST');
  });

  test('a device whose prekeys are used up', async () => {
    await doctors.past(
      'identity-keys',
      `CREATE TABLE kept_prekeys AS SELECT p.* FROM unclaimed_one_time_prekeys p JOIN devices d USING (device_number) WHERE d.user_id = '${chat.aliceId}'`,
      'DELETE FROM unclaimed_one_time_prekeys p USING kept_prekeys k WHERE (p.device_number, p.seq) = (k.device_number, k.seq)',
    );
    await doctors.names('PREKEY_POOLS', 'warn', /1 of \d+ devices have an empty pool of prekeys/);
    await doctors.past(
      'identity-keys',
      'INSERT INTO unclaimed_one_time_prekeys SELECT * FROM kept_prekeys',
      'DROP TABLE kept_prekeys',
    );
    await doctors.isOkAgain('PREKEY_POOLS');
  });

  test('a session that is neither committed nor given up', async () => {
    // Younger than what is given up, by the clock that the doctor reads: nothing takes it away meanwhile.
    await doctors.past(
      'conversation',
      'ALTER TABLE candidates RENAME TO candidates_of_the_service',
      'CREATE TABLE candidates AS TABLE candidates_of_the_service',
      `INSERT INTO candidates (conversation_id, session_id, request_id, caller_user_id, attempt, started_at, writer_build, trace_id)
       VALUES (gen_random_uuid(), 'stuck', gen_random_uuid(), 'somebody', 1, now() - interval '2 hours', 'a-build', '')`,
      'GRANT SELECT ON candidates TO PUBLIC',
    );
    await doctors.names('CANDIDATES', 'fail', /neither committed nor given up for 1[12]\d min/);
    await doctors.past(
      'conversation',
      'DROP TABLE candidates',
      'ALTER TABLE candidates_of_the_service RENAME TO candidates',
    );
    await doctors.isOkAgain('CANDIDATES');
  });

  test('a row by a build that does not run', async () => {
    // As of one that goes on to write when the starts of the others cannot explain it any more.
    await doctors.past(
      'session',
      "UPDATE sessions SET writer_build = '0.0.9+old', created_at = now() + interval '2 minutes'",
    );
    await doctors.names('OLD_BUILD_WRITES', 'fail', /0\.0\.9\+old does not run as far as the doctor sees/);
    await doctors.past('session', "UPDATE sessions SET created_at = now() - interval '1 day'");
    await doctors.isOkAgain('OLD_BUILD_WRITES');
  });

  test.each<[what: string, inject: string, heal: string, words: RegExp]>([
    [
      'unknown to the build',
      `INSERT INTO _prisma_migrations (id, checksum, migration_name, started_at, finished_at, applied_steps_count)
       VALUES ('strange', 'x', '20991231000000_of_tomorrow', now(), now(), 1)`,
      "DELETE FROM _prisma_migrations WHERE id = 'strange'",
      /20991231000000_of_tomorrow/,
    ],
    [
      'edited after it was applied',
      "UPDATE _prisma_migrations SET checksum = reverse(checksum) WHERE migration_name = '20261101000000_sessions'",
      "UPDATE _prisma_migrations SET checksum = reverse(checksum) WHERE migration_name = '20261101000000_sessions'",
      /edited 20261101000000_sessions/,
    ],
    [
      'failed',
      "UPDATE _prisma_migrations SET finished_at = NULL WHERE migration_name = '20261101000000_sessions'",
      "UPDATE _prisma_migrations SET finished_at = now() WHERE migration_name = '20261101000000_sessions'",
      /failed 20261101000000_sessions/,
    ],
    [
      'missing',
      "UPDATE _prisma_migrations SET rolled_back_at = now() WHERE migration_name = '20261101000000_sessions'",
      "UPDATE _prisma_migrations SET rolled_back_at = NULL WHERE migration_name = '20261101000000_sessions'",
      /missing 20261101000000_sessions/,
    ],
  ])('a migration that is %s', async (_, inject, heal, words) => {
    await doctors.past('session', inject);
    try {
      const { of } = await doctors.findings('MIGRATIONS');
      expect(of('MIGRATIONS').status).toMatch(/^(fail|warn)$/);
      expect(JSON.stringify(of('MIGRATIONS'))).toMatch(words);
    } finally {
      await doctors.past('session', heal);
    }
    await doctors.isOkAgain('MIGRATIONS');
  });
});
