import { randomUUID } from 'node:crypto';
import { join } from 'node:path';
import type { CheckCode, DatabaseCheck, Outcome } from '@keytrail/diagnosis';
import { checkoutFolder, ensurePostgres, type ServerHandle } from '@keytrail/local';
import { createServiceDatabase, migrateDatabase } from '@keytrail/storage';
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, it, test } from 'vitest';
import { databaseChecks as conversation } from '../../services/conversation/src/checks/index.ts';
import { databaseChecks as identityKeys } from '../../services/identity-keys/src/checks/index.ts';
import { databaseChecks as session } from '../../services/session/src/checks/index.ts';

const services = { 'identity-keys': identityKeys, session, conversation };
type Service = keyof typeof services;

let postgres: ServerHandle;
/** Of each service, over a connection that no trigger and no foreign key holds back. */
const databases = new Map<Service, pg.Client>();
beforeAll(async () => {
  postgres = await ensurePostgres();
  for (const service of Object.keys(services) as Service[]) {
    const name = `rows_${randomUUID().replaceAll('-', '').slice(0, 12)}`;
    const url = await createServiceDatabase({ adminUrl: postgres.url, name, role: name, password: 'secret' });
    await migrateDatabase({ url, migrations: join(checkoutFolder, 'services', service, 'prisma/migrations') });
    const client = new pg.Client({
      connectionString: Object.assign(new URL(postgres.url), { pathname: `/${name}` }).href,
    });
    await client.connect();
    databases.set(service, client);
    await client.query('SET session_replication_role = replica');
  }
}, 60_000);
afterAll(async () => {
  for (const client of databases.values()) await client.end();
  await postgres?.stop();
});

function database(service: Service): pg.Client {
  return databases.get(service) as pg.Client;
}

async function outcome(service: Service, code: CheckCode): Promise<Outcome> {
  const check = services[service].find((each) => each.code === code) as DatabaseCheck;
  const { rows } = await database(service).query(check.statement.text);
  return check.judge(rows);
}

interface Plan {
  readonly 'Node Type': string;
  readonly 'Relation Name'?: string;
  readonly 'Index Name'?: string;
  readonly Plans?: readonly Plan[];
}

function* scans(plan: Plan): Generator<Plan> {
  if (plan['Relation Name']) yield plan;
  for (const below of plan.Plans ?? []) yield* scans(below);
}

test.each(Object.keys(services) as Service[])(
  'every table of %s that names the build of its writer is asked for it, and by an index',
  async (service) => {
    const client = database(service);
    const { rows } = await client.query<{ name: string }>(
      "SELECT table_name AS name FROM information_schema.columns WHERE column_name = 'writer_build' AND table_schema = current_schema()",
    );
    const stamped = rows.map((table) => table.name).sort();
    const writers = services[service].find(({ code }) => code === 'OLD_BUILD_WRITES');
    // Empty tables are read whole, whatever index there is.
    await client.query('SET enable_seqscan = off; SET enable_bitmapscan = off');
    const plans = await client.query(`EXPLAIN (FORMAT JSON) ${writers?.statement.text}`);
    await client.query('RESET enable_seqscan; RESET enable_bitmapscan');
    const all = [...scans(plans.rows[0]['QUERY PLAN'][0].Plan)];
    expect([...new Set(all.map((scan) => scan['Relation Name']))].sort()).toEqual(stamped);
    const slow = all.filter((scan) => scan['Index Name'] !== `${scan['Relation Name']}_by_writer`);
    // What is being committed is never much.
    expect([...new Set(slow.map((scan) => scan['Relation Name']))]).toEqual(
      service === 'conversation' ? ['candidates'] : [],
    );
  },
);

describe('of a table that is larger than what is looked at', () => {
  const count = 4_000;
  /** Of the nth row; rows are a minute apart. */
  const at = `now() - (${count} - n) * interval '1 minute'`;
  const one = (text: string) => `sha256(('${text}' || n)::bytea)`;
  const all = `FROM generate_series(1, ${count}) AS n`;
  const newest = `WHERE n > ${count * 0.2}`;

  it.each<[code: CheckCode, service: Service, words: RegExp, fill: readonly string[]]>([
    [
      'IDENTITY_KEYS',
      'identity-keys',
      /of 2000 devices lack keys, the first its last-resort prekey/,
      [
        `INSERT INTO users (user_id, root_key, device_list_version, log_head) SELECT 'u' || n, ${one('root')}, 1, ${one('head')} ${all}`,
        `INSERT INTO devices (user_id, device_id, suite, identity_key, signing_key, certificate_root_key, certificate_signature, certified_at,
             current_signed_prekey_id, current_last_resort_prekey_id, registered_keys_digest, added_in_version, certified_in_version, added_at,
             writer_build, created_trace_id)
           SELECT 'u' || n, 'phone', 1, ${one('identity')}, ${one('signing')}, ${one('root')}, sha512(${one('certificate')}), now(), 1, 1,
                  ${one('digest')}, 1, 1, ${at}, '1.0.0+now', '' ${all} ORDER BY n`,
        `INSERT INTO signed_prekeys (device_number, key_id, public_key, signature)
           SELECT device_number, 1, identity_key, certificate_signature FROM devices`,
        `INSERT INTO last_resort_prekeys (device_number, key_id, public_key, signature)
           SELECT device_number, 1, decode(repeat('00', 1184), 'hex'), certificate_signature FROM devices JOIN (SELECT 'u' || n AS user_id ${all} ${newest}) AS whole USING (user_id)`,
      ],
    ],
    [
      'ENVELOPE_COUNTS',
      'session',
      /of 500 sessions do not have what they were stored with/,
      [
        'ALTER TABLE sessions DROP CONSTRAINT sessions_native_is_complete',
        `INSERT INTO sessions (conversation_id, session_id, kind, epoch, initiator_user_id, initiator_device_id, envelopes_expected,
             withholdings_expected, writer_build, created_traceparent, created_at)
           SELECT gen_random_uuid(), 's', 'NATIVE', 1, 'u', 'd', CASE WHEN n > ${count * 0.2} THEN 0 ELSE 2 END, 0, '1.0.0+now', '', ${at} ${all} ORDER BY n`,
      ],
    ],
    [
      'CONVERSATION_SESSIONS',
      'conversation',
      /of 500 conversations are in an epoch that has no row/,
      [
        `INSERT INTO conversations (conversation_id, kind, history_policy, epoch, session_id, roster_version, created_at, writer_build,
             created_trace_id, last_write_trace_id)
           SELECT gen_random_uuid(), 2, 1, 1, 's' || n, 1, ${at}, '1.0.0+now', '', '' ${all} ORDER BY n`,
        `INSERT INTO epochs (conversation_id, epoch, session_id, roster_version, header_hash, initiator_user_id, initiator_device_id,
             envelopes_written, envelopes_expected, committed_at, writer_build, trace_id, history_policy)
           SELECT conversation_id, 1, session_id, 1, sha256(session_id::bytea), 'a', 'b', 1, 1, created_at, writer_build, '', 1
             FROM conversations JOIN (SELECT 's' || n AS session_id ${all} ${newest}) AS whole USING (session_id)`,
      ],
    ],
  ])('%s finds what is wrong with the oldest fifth', async (code, service, words, fill) => {
    for (const statement of fill) await database(service).query(statement);
    expect(await outcome(service, code)).toMatchObject({ status: 'fail', summary: expect.stringMatching(words) });
  });

  it('CONVERSATION_SESSIONS names the epochs that were committed last, however old the conversation is', async () => {
    const oldest = 'SELECT conversation_id FROM conversations ORDER BY created_at LIMIT 10';
    await database('conversation').query(
      `INSERT INTO epochs (conversation_id, epoch, session_id, roster_version, header_hash, initiator_user_id, initiator_device_id,
           envelopes_written, envelopes_expected, committed_at, writer_build, trace_id, history_policy, previous_header_hash)
         SELECT conversation_id, 2, 'rotated', 1, sha256('rotated'), 'a', 'b', 1, 1, now(), '1.0.0+now', '', 1, sha256('') FROM (${oldest}) AS oldest`,
    );
    await database('conversation').query(
      `UPDATE conversations SET epoch = 2, session_id = 'rotated' WHERE conversation_id IN (${oldest})`,
    );
    const { subjects = [] } = await outcome('conversation', 'CONVERSATION_SESSIONS');
    expect(subjects.filter((subject) => subject.endsWith('/rotated'))).toHaveLength(10);
  });
});
