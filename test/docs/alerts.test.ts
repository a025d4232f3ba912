import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { checkCatalogue } from '@keytrail/diagnosis';
import {
  attr,
  attributeReference,
  eventReference,
  type InstrumentDeclaration,
  metricRegistry,
  prometheusLabel,
  prometheusSeries,
  resourceReference,
} from '@keytrail/telemetry';
import { expect, test } from 'vitest';

const root = join(import.meta.dirname, '../..');
const read = (path: string) => readFileSync(join(root, path), 'utf8');
const alertsText = read('deploy/prometheus/alerts.yaml');
const recordingText = read('deploy/prometheus/recording.yaml');
const tested = ['alerts', 'alerts-over-days'].map((name) => read(`deploy/prometheus/${name}.test.yaml`)).join('\n');
/** How a panel names the data source that was chosen. */
const chosen = ['$', '{datasource}'].join('');
const dashboard = JSON.parse(read('deploy/grafana/keytrail.json'));

interface Rule {
  readonly name: string;
  readonly expr: string;
  readonly runbook: string;
}

/** Rules as this repository writes them: one `expr`, on its line or as a block below it. */
function rulesOf(text: string): Rule[] {
  return text
    .split(/\n {6}- (?=alert: |record: )/)
    .slice(1)
    .map((rule) => ({
      name: /^(?:alert|record): (\S+)/.exec(rule)?.[1] ?? '',
      expr: (/\n {8}expr: \|\n((?: {10}.*\n?)+)/.exec(rule)?.[1] ?? /\n {8}expr: (.*)/.exec(rule)?.[1] ?? '').trim(),
      runbook: /runbook_url: (\S+)/.exec(rule)?.[1] ?? '',
    }));
}

const alerts = rulesOf(alertsText);
const recorded = rulesOf(recordingText);
/** Labels that a series may have: by the registry, and what Prometheus adds. */
const labelsOf = new Map(
  Object.values<InstrumentDeclaration>(metricRegistry).flatMap((instrument) =>
    prometheusSeries(instrument).map((series) => [
      series,
      new Set(['job', 'instance', 'le', ...instrument.attributes.map(prometheusLabel)]),
    ]),
  ),
);

/** Names of series in an expression, each with the labels that it is matched by. */
function seriesOf(expr: string): { name: string; labels: string[] }[] {
  const without = expr.replace(/\b(?:by|without|on|ignoring)\s*\([^)]*\)/g, ' ').replace(/\[[^\]]*\]/g, ' ');
  return [...without.matchAll(/([a-zA-Z_:][a-zA-Z0-9_:]*)\s*(\{[^}]*\})?(?![a-zA-Z0-9_:]|\s*\()/g)]
    .map(([, name = '', matchers = '']) => ({
      name,
      labels: [...matchers.matchAll(/([a-zA-Z_][a-zA-Z0-9_]*)\s*(?:=~|!~|!=|=)\s*"/g)].map(([, label = '']) => label),
    }))
    .filter(({ name }) => name.includes('_') || name.includes(':'))
    .filter(({ name }) => !['histogram_quantile'].includes(name));
}

/** Labels that an expression groups by. */
function groupedBy(expr: string): string[] {
  return [...expr.matchAll(/\bby\s*\(([^)]*)\)/g)].flatMap(([, labels = '']) =>
    labels.split(',').map((label) => label.trim()),
  );
}

/** Labels of what a rule records: those it sums by, and else those of what it asks for when that is recorded too. */
function labelsOfRecorded(name: string): Set<string> {
  const { expr = '' } = recorded.find((rule) => rule.name === name) ?? {};
  if (expr.includes(' by (')) return new Set(groupedBy(expr));
  const inner = seriesOf(expr).flatMap((series) => (isRecorded(series.name) ? [...labelsOfRecorded(series.name)] : []));
  return new Set(inner);
}

const isRecorded = (name: string) => recorded.some((rule) => rule.name === name);
const allowedLabels = (name: string) => (isRecorded(name) ? labelsOfRecorded(name) : labelsOf.get(name));

function problemsOf(expr: string): string[] {
  const used = seriesOf(expr);
  const known = new Set(used.flatMap(({ name }) => [...(allowedLabels(name) ?? [])]));
  return [
    ...used.flatMap(({ name, labels }) => {
      const allowed = allowedLabels(name);
      if (!allowed) return [`${name} is in no registry`];
      return labels.filter((label) => !allowed.has(label)).map((label) => `${name} has no label ${label}`);
    }),
    ...groupedBy(expr).filter((label) => !known.has(label)),
    ...(used.length === 0 && expr !== 'vector(0.01)' ? [`nothing is asked for in ${expr}`] : []),
  ];
}

const escapeForPattern = (text: string) => text.replace(/[.*+?^${}()|[\]\\]/g, '\\$&');

/** Texts in the sources of services and packages, and what rounds say when they fail. */
function textsOfSources(): string[] {
  const folders = ['packages', 'services'].flatMap((above) =>
    readdirSync(join(root, above)).map((name) => join(above, name, 'src')),
  );
  return folders.flatMap((folder) =>
    readdirSync(join(root, folder), { recursive: true, encoding: 'utf8' })
      .filter((file) => file.endsWith('.ts') && !/(^|\/)gen\//.test(file))
      .flatMap((file) => [...read(join(folder, file)).matchAll(/(what: )?'([^'\n]+)'/g)])
      .map(([, rounds, text = '']) => (rounds ? `${text} failed` : text)),
  );
}

test('every expression of an alert and of a recording asks for series and labels that exist', () => {
  expect(alerts.length).toBeGreaterThan(15);
  for (const { name, expr } of [...alerts, ...recorded]) expect(problemsOf(expr), name).toEqual([]);
});

test('an expression that asks for what does not exist is found', () => {
  expect(problemsOf('sum(rate(keytrail_no_such_total[5m])) > 1')).toEqual(['keytrail_no_such_total is in no registry']);
  expect(problemsOf('keytrail_misses_total{cause="X"} > 1')).toEqual(['keytrail_misses_total has no label cause']);
  expect(problemsOf('sum by (cause) (keytrail_misses_total)')).toEqual(['cause']);
  expect(problemsOf('keytrail:misses:rate15m{keytrail_recovery="X"}')).toEqual([
    'keytrail:misses:rate15m has no label keytrail_recovery',
  ]);
  expect(problemsOf('sum by (job) (keytrail:misses:rate15m)')).toEqual(['job']);
  expect(problemsOf('keytrail:offer_to_key_slow:ratio_rate5m{job="keytrail/session"}')).toHaveLength(1);
});

test('where increases are asked for, the first event of a series is one of them, if its service was known before', () => {
  const increases = [...alerts, ...recorded].flatMap(({ name, expr }) =>
    [...expr.matchAll(/increase\((.*)\[(\w+)\]\)/g)].map(([, series = '', window = '']) => ({
      name,
      expr,
      series,
      window,
    })),
  );
  expect(increases.length).toBeGreaterThan(2);
  for (const { name, expr, series, window } of increases)
    expect(expr, name).toContain(
      `(last_over_time(${series}[${window}]) unless last_over_time(${series}[1d] offset ${window})
              and on (job) last_over_time(keytrail_ready[1d] offset ${Number.parseInt(window, 10) + 5}m))`,
    );
});

test('every alert has its runbook, every runbook its alert, and the index has them all', () => {
  const kebab = (name: string) =>
    name
      .replace(/^Keytrail/, '')
      .replace(/(?<!^)(?=[A-Z])/g, '-')
      .toLowerCase();
  for (const { name, runbook } of alerts) {
    expect(runbook).toBe(`docs/runbooks/${kebab(name)}.md`);
    expect(existsSync(join(root, runbook)), runbook).toBe(true);
    const page = read(runbook);
    // It also serves who restores on purpose, and is arranged for that.
    if (name === 'KeytrailDatabaseRestored') continue;
    for (const heading of [
      '## What it means',
      '## How urgent',
      '## First',
      '## Likely causes',
      '## What to do',
      '## How to verify',
    ])
      expect(page, `${runbook}: ${heading}`).toContain(heading);
    expect(read('docs/runbooks/README.md')).toContain(`(${kebab(name)}.md)`);
  }
  const pages = readdirSync(join(root, 'docs/runbooks')).filter((file) => file !== 'README.md');
  expect(pages.sort()).toEqual(alerts.map(({ name }) => `${kebab(name)}.md`).sort());
});

test('what a runbook says to run exists: checks of the doctor, commands, settings', () => {
  const codes = new Set<string>(checkCatalogue.map(({ code }) => code));
  const settings = read('docs/configuration/README.md');
  const commands = new Set(
    readdirSync(join(root, 'packages/cli/src/commands')).map((file) => file.replace(/\.ts$/, '')),
  );
  for (const { runbook } of alerts) {
    const page = read(runbook);
    for (const [, only = ''] of page.matchAll(/doctor --only (\S+)/g))
      for (const code of only.split(',')) expect(codes, `${runbook}: ${code}`).toContain(code);
    for (const [, command = ''] of page.matchAll(/keytrail ([a-z-]+)/g))
      expect(commands, `${runbook}: ${command}`).toContain(command);
    for (const [setting] of page.matchAll(/KEYTRAIL_[A-Z_]+[A-Z]/g))
      expect(settings, runbook).toContain(`\`${setting}`);
  }
});

test('what a runbook says to look at exists: series, panels of the dashboard, lines of logs', () => {
  const titles = [...JSON.stringify(dashboard).matchAll(/"title":"([^"]+)"/g)].map(([, title = '']) => title);
  const says = textsOfSources();
  const isSaid = (words: string) => {
    const begins = new RegExp(`^${words.split('…').map(escapeForPattern).join('.+')}(;|$)`);
    return titles.includes(words) || says.some((text) => begins.test(text));
  };
  for (const { runbook } of alerts) {
    const page = read(runbook);
    for (const [, code = ''] of page.matchAll(/`([^`\n]+)`/g)) {
      if (!/\b(keytrail|rpc|messaging)[_:]\w/.test(code) || code.startsWith('KEYTRAIL_')) continue;
      const expr = code.startsWith('curl ') ? (code.split(' ').at(-1) ?? '') : code;
      expect(problemsOf(expr), `${runbook}: ${code}`).toEqual([]);
    }
    for (const [, words = ''] of page.matchAll(/(?<!\*)\*([^*\s][^*\n]*)\*(?!\*)/g))
      expect(isSaid(words), `${runbook}: ${words}`).toBe(true);
  }
  expect(isSaid('the sweep of key requests failed')).toBe(true);
  expect(isSaid('the sweep of nothing failed')).toBe(false);
});

test('every alert is shown to fire and not to fire', () => {
  for (const { name } of alerts)
    for (const how of ['fires', 'is quiet']) expect(tested, name).toContain(`- name: ${name} ${how}\n`);
});

test('the dashboard has panels of its own ids, asks the chosen data source, and for series that exist', () => {
  const panels = dashboard.panels as {
    id: number;
    type: string;
    title: string;
    datasource?: { uid: string };
    targets?: { expr: string; datasource: { uid: string } }[];
  }[];
  expect(new Set(panels.map(({ id }) => id)).size).toBe(panels.length);
  const variables = dashboard.templating.list.map(({ name }: { name: string }) => name);
  expect(variables).toContain('datasource');
  for (const { type, title, datasource, targets = [] } of panels) {
    if (type === 'row') continue;
    expect(datasource?.uid, title).toBe(chosen);
    expect(targets.length, title).toBeGreaterThan(0);
    for (const { expr, datasource: from } of targets) {
      expect(from.uid, title).toBe(chosen);
      expect(problemsOf(expr), `${title}: ${expr}`).toEqual([]);
    }
  }
});

test('the collector lets through the attributes that are declared, and no others', () => {
  const collector = read('deploy/otel/collector.yaml');
  const allowed = /\n {4}allowed_keys:\n((?: {6}- .*\n)+)/.exec(collector)?.[1]?.match(/[^\s-][^\s]*/g) ?? [];
  const declared = [...attributeReference, ...resourceReference, ...eventReference].map(({ name }) => name);
  expect([...allowed].sort()).toEqual([...new Set<string>(declared)].sort());
});

test('the collector keeps the traces of misses by the attribute that says so, whatever their status', () => {
  const policy = /- name: misses\n {8}type: boolean_attribute\n {8}boolean_attribute: (.*)/.exec(
    read('deploy/otel/collector.yaml'),
  );
  expect(policy?.[1]).toBe(`{ key: ${attr.miss}, value: true }`);
});

test('the collector keeps what services say to keep, and asks as spans come, so that no trace is given up for good', () => {
  const collector = read('deploy/otel/collector.yaml');
  expect(collector).toContain(`string_attribute: { key: ${attr.kept}, enabled_regex_matching: true, values: [".+"]`);
  expect(collector).toContain('sampling_strategy: span-ingest');
  expect(collector).not.toContain('non_sampled_cache_size');
});
