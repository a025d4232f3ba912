import { mkdirSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describeSettings, type SettingReference, type Settings } from '@keytrail/settings';

// Writes docs/configuration/README.md from the settings that the services read.
const root = join(import.meta.dirname, '..');

interface Row extends SettingReference {
  readonly services: string[];
}

const rows = new Map<string, Row>();
const services = readdirSync(join(root, 'services')).sort();
for (const service of services) {
  const module = (await import(join(root, 'services', service, 'src', 'config.ts'))) as Record<string, unknown>;
  const name = Object.keys(module).find((key) => key.endsWith('Settings'));
  if (!name) throw new Error(`services/${service}/src/config.ts exports no …Settings`);
  for (const reference of describeSettings(module[name] as Settings)) {
    const row = rows.get(reference.variable);
    if (row) row.services.push(service);
    else rows.set(reference.variable, { ...reference, services: [service] });
  }
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
