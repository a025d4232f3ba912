import { execFileSync } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { ensurePostgres } from '@keytrail/local';
import { servicesWithDatabase } from '@keytrail/local/constellation';
import { upEnvironment } from '@keytrail/local/up-environment';
import { createServiceDatabase, migrateDatabase } from '@keytrail/storage';
import { expect, test } from 'vitest';
import { checkout } from './files.ts';

test('after `. .local/up.env` keytrail migrate status finds the databases', async () => {
  const postgres = await ensurePostgres();
  try {
    await found(postgres.url);
  } finally {
    await postgres.stop();
  }
}, 60_000);

async function found(adminUrl: string): Promise<void> {
  const databases = await Promise.all(
    servicesWithDatabase.map(async (service) => {
      const name = `up_${randomUUID().replaceAll('-', '').slice(0, 12)}`;
      const url = await createServiceDatabase({ adminUrl, name, role: name, password: "it's & secret" });
      await migrateDatabase({ url, migrations: join(checkout, 'services', service, 'prisma/migrations') });
      return [service, url] as const;
    }),
  );
  const folder = mkdtempSync(join(checkout, '.local', 'up-environment-'));
  try {
    writeFileSync(
      join(folder, 'up.env'),
      upEnvironment({
        services: [],
        issuer: 'http://127.0.0.1:1',
        traces: 'http://127.0.0.1:1',
        operatorTokenFile: join(folder, 'token'),
        databaseUrls: Object.fromEntries(databases),
      }),
    );
    const out = execFileSync('bash', ['-ec', `. ${folder}/up.env; bin/keytrail migrate status`], {
      cwd: checkout,
      env: { PATH: process.env.PATH, HOME: process.env.HOME, KEYTRAIL_SKIP_INSTALL: '1' },
      encoding: 'utf8',
    });
    for (const [service] of databases) expect(out).toMatch(new RegExp(`^${service}\\b`, 'm'));
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}
