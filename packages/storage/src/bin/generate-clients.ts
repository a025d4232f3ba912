import { spawnSync } from 'node:child_process';
import { existsSync, readdirSync } from 'node:fs';
import path from 'node:path';

const help = `Generates the Prisma client of every service that has a prisma/schema.prisma. Needs no download.

usage: generate-clients.ts [service...]
`;

const root = path.resolve(import.meta.dirname, '../../../..');
const asked = process.argv.slice(2);
if (asked.includes('--help')) {
  process.stdout.write(help);
  process.exit(0);
}

const schemas = readdirSync(path.join(root, 'services'))
  .filter((service) => asked.length === 0 || asked.includes(service))
  .map((service) => path.join('services', service, 'prisma', 'schema.prisma'))
  .filter((schema) => existsSync(path.join(root, schema)));

if (schemas.length < asked.length) {
  process.stderr.write(`no prisma/schema.prisma for all of: ${asked.join(', ')}\n`);
  process.exit(2);
}

for (const schema of schemas) {
  const { status } = spawnSync(
    process.execPath,
    [path.join(root, 'node_modules/prisma/build/index.js'), 'generate', '--no-hints', '--schema', schema],
    {
      cwd: root,
      stdio: 'inherit',
      // The CLI would download an engine that generating does not use; any executable stands in for it.
      env: { ...process.env, PRISMA_SCHEMA_ENGINE_BINARY: process.execPath, CHECKPOINT_DISABLE: '1' },
    },
  );
  if (status !== 0) process.exit(status ?? 1);
}
