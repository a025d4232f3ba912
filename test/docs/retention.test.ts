import { randomBytes } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { ensurePostgres, type ServerHandle } from '@keytrail/local';
import { createServiceDatabase, migrateDatabase } from '@keytrail/storage';
import pg from 'pg';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { checkout } from './files.ts';

const document = readFileSync(join(checkout, 'docs/retention.md'), 'utf8');

let postgres: ServerHandle;
beforeAll(async () => {
  postgres = await ensurePostgres();
});
afterAll(() => postgres?.stop());

function documented(service: string): string[] {
  const section = document.split(/^## /m).find((part) => part.startsWith(`${service}\n`)) ?? '';
  return [...section.matchAll(/^\| `([a-z_]+)` \|/gm)].map(([, table]) => table ?? '').sort();
}

test.each(['identity-keys', 'session', 'conversation'])(
  'the retention of every table of %s is documented, and of no other',
  async (service) => {
    const name = `retention_${randomBytes(5).toString('hex')}`;
    const url = await createServiceDatabase({ adminUrl: postgres.url, name, role: name, password: name });
    await migrateDatabase({ url, migrations: join(checkout, 'services', service, 'prisma/migrations') });
    const client = new pg.Client({ connectionString: url });
    await client.connect();
    try {
      const { rows } = await client.query<{ table_name: string }>(
        `SELECT table_name FROM information_schema.tables
         WHERE table_schema = 'public' AND table_type = 'BASE TABLE' AND table_name NOT LIKE '\\_prisma%'`,
      );
      expect(documented(service)).toEqual(rows.map(({ table_name }) => table_name).sort());
    } finally {
      await client.end();
    }
  },
);
