import { randomUUID } from 'node:crypto';
import { join } from 'node:path';
import type { DatabaseCheck } from '@keytrail/diagnosis';
import { checkoutFolder, ensurePostgres, type ServerHandle } from '@keytrail/local';
import { createServiceDatabase, migrateDatabase } from '@keytrail/storage';
import pg from 'pg';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { databaseChecks as conversation } from '../../services/conversation/src/checks/index.ts';
import { databaseChecks as identityKeys } from '../../services/identity-keys/src/checks/index.ts';
import { databaseChecks as session } from '../../services/session/src/checks/index.ts';

let postgres: ServerHandle;
beforeAll(async () => {
  postgres = await ensurePostgres();
});
afterAll(() => postgres?.stop());

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

test.each<[service: string, checks: readonly DatabaseCheck[]]>([
  ['identity-keys', identityKeys],
  ['session', session],
  ['conversation', conversation],
])('every table of %s that names the build of its writer is asked for it, and by an index', async (service, checks) => {
  const name = `writers_${randomUUID().replaceAll('-', '').slice(0, 12)}`;
  const url = await createServiceDatabase({ adminUrl: postgres.url, name, role: name, password: 'secret' });
  await migrateDatabase({ url, migrations: join(checkoutFolder, 'services', service, 'prisma/migrations') });
  const client = new pg.Client(url);
  await client.connect();
  try {
    const { rows } = await client.query<{ name: string }>(
      "SELECT table_name AS name FROM information_schema.columns WHERE column_name = 'writer_build' AND table_schema = current_schema()",
    );
    const stamped = rows.map((table) => table.name).sort();
    const writers = checks.find(({ code }) => code === 'OLD_BUILD_WRITES');
    // Empty tables are read whole, whatever index there is.
    await client.query('SET enable_seqscan = off; SET enable_bitmapscan = off');
    const plans = await client.query(`EXPLAIN (FORMAT JSON) ${writers?.statement.text}`);
    const all = [...scans(plans.rows[0]['QUERY PLAN'][0].Plan)];
    expect([...new Set(all.map((scan) => scan['Relation Name']))].sort()).toEqual(stamped);
    const slow = all.filter((scan) => scan['Index Name'] !== `${scan['Relation Name']}_by_writer`);
    // What is being committed is never much.
    expect([...new Set(slow.map((scan) => scan['Relation Name']))]).toEqual(
      service === 'conversation' ? ['candidates'] : [],
    );
  } finally {
    await client.end();
  }
});
