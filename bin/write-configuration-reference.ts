import { existsSync, mkdirSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describeSettings, type SettingReference, type Settings } from '@keytrail/settings';

// Writes docs/configuration/README.md from the settings that the services read.
const root = join(import.meta.dirname, '..');

interface Row extends SettingReference {
  readonly services: string[];
}

const rows = new Map<string, Row>();
const told = new Map<string, { from: string; as: string }>();
const differences: string[] = [];
const services = readdirSync(join(root, 'services')).sort();
for (const service of services) {
  const module = (await import(join(root, 'services', service, 'src', 'config.ts'))) as Record<string, unknown>;
  const name = Object.keys(module).find((key) => key.endsWith('Settings'));
  if (!name) throw new Error(`services/${service}/src/config.ts exports no …Settings`);
  for (const reference of describeSettings(module[name] as Settings)) {
    compare(`services/${service}`, reference);
    const row = rows.get(reference.variable);
    if (row) row.services.push(service);
    else rows.set(reference.variable, { ...reference, services: [service] });
  }
}

// A group hides what another group of the same service says of a variable, so packages are compared themselves.
for (const provider of readdirSync(join(root, 'packages'))) {
  for (const file of ['config.ts', 'settings.ts'].map((name) => join(root, 'packages', provider, 'src', name))) {
    if (!existsSync(file)) continue;
    const module = (await import(file)) as Record<string, unknown>;
    for (const name of Object.keys(module).filter((key) => key.endsWith('Settings') && typeof module[key] === 'object'))
      for (const reference of describeSettings(module[name] as Settings)) compare(`packages/${provider}`, reference);
  }
}
if (differences.length > 0) {
  console.error(`One variable must have one default and one text wherever it is read:\n${differences.join('\n')}`);
  process.exit(1);
}

/** Notes when a variable has another default or text here than where it was met first. */
function compare(from: string, { variable, describe, required, secret, default: fallback }: SettingReference): void {
  const as = JSON.stringify({ default: fallback ?? null, required, secret, describe });
  const first = told.get(variable);
  if (!first) told.set(variable, { from, as });
  else if (first.as !== as) differences.push(`${variable}\n  ${first.from}: ${first.as}\n  ${from}: ${as}`);
}

const cell = (text: string) => text.replaceAll('|', '\\|').replaceAll('\n', ' ');
const table = (selected: readonly Row[]) =>
  [
    '| variable | default | what it is |',
    '|---|---|---|',
    ...selected.map((row) => {
      const fallback = row.required
        ? '*required*'
        : row.default === undefined || row.default === ''
          ? '–'
          : `\`${row.default}\``;
      return `| \`${row.variable}\`${row.secret ? ' (secret)' : ''} | ${cell(fallback)} | ${cell(row.describe)} |`;
    }),
  ].join('\n');

const byVariable = [...rows.values()].sort((a, b) => (a.variable < b.variable ? -1 : 1));
const sections = [
  ['Every service', byVariable.filter((row) => row.services.length === services.length)],
  ['Several services', byVariable.filter((row) => row.services.length > 1 && row.services.length < services.length)],
  ...services.map((service) => [
    service,
    byVariable.filter((row) => row.services.length === 1 && row.services[0] === service),
  ]),
] as [string, Row[]][];

const text = `# Configuration

Generated from the settings that the services read; do not edit (\`make generate\`). Everything is read from the environment, once, at
start; a process names every variable that breaks its rule and exits. Durations are whole milliseconds. An empty variable counts as unset.

${sections
  .filter(([, selected]) => selected.length > 0)
  .map(([title, selected]) => `## ${title}\n\n${table(selected)}`)
  .join('\n\n')}
`;
mkdirSync(join(root, 'docs', 'configuration'), { recursive: true });
writeFileSync(join(root, 'docs', 'configuration', 'README.md'), text);
