import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type InstrumentDeclaration, metricRegistry, prometheusLabel, prometheusName } from '@keytrail/telemetry';

// Writes docs/metrics/README.md from the registry of instruments.
const root = join(import.meta.dirname, '..');

const rows = Object.values<InstrumentDeclaration>(metricRegistry).map((instrument) => {
  const { name, kind, unit, describe, attributes } = instrument;
  const labels = attributes.map((attribute) => `\`${prometheusLabel(attribute)}\``).join(', ') || '–';
  return `| \`${prometheusName(instrument)}\` | \`${name}\` | ${kind} | ${unit ? `\`${unit}\`` : '–'} | ${labels} | ${describe.replaceAll('|', '\\|')} |`;
});
const histograms = Object.values<InstrumentDeclaration>(metricRegistry).flatMap(({ name, buckets }) =>
  buckets ? [`- \`${name}\`: ${buckets.join(', ')}`] : [],
);

const text = `# Metrics

Generated from \`packages/telemetry/src/metric-registry.ts\`; do not edit (\`make generate\`). Every process sends its metrics over OTLP/HTTP to
\`KEYTRAIL_OTLP_URL\`, every \`KEYTRAIL_METRICS_EXPORT_MS\`. In Prometheus a counter ends with \`_total\`, a duration is in seconds, a histogram has
\`_bucket\`, \`_sum\` and \`_count\`; \`job\` is \`keytrail/<service>\` and \`instance\` one process. No label ever holds an id of a user, device, conversation,
session or request.

Gauges of a state that the database or NATS is asked for are read once per \`KEYTRAIL_GAUGES_MS\` by one bounded statement or call, never because of a
scrape, and are not told any more when that failed three times. Every replica of a service reports the same: take \`max\`, not \`sum\`.

| Prometheus | OpenTelemetry | kind | unit | labels | what it is |
|---|---|---|---|---|---|
${rows.join('\n')}

## Buckets

Upper bounds in seconds.

${histograms.join('\n')}

Alerts on these: [deploy/prometheus](../../deploy/prometheus/README.md). The dashboard: [deploy/grafana](../../deploy/grafana/README.md).
`;
mkdirSync(join(root, 'docs', 'metrics'), { recursive: true });
writeFileSync(join(root, 'docs', 'metrics', 'README.md'), text);
