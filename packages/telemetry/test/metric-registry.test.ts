import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import * as conventions from '@opentelemetry/semantic-conventions/incubating';
import { expect, test } from 'vitest';
import { attr, type InstrumentDeclaration, metricRegistry, prometheusName, prometheusSeries } from '../src/index.ts';

const root = join(import.meta.dirname, '../../..');
const declared = Object.entries<InstrumentDeclaration>(metricRegistry);

/** The sources of services and packages, without what is generated. */
function sources(): Map<string, string> {
  const found = new Map<string, string>();
  for (const area of ['packages', 'services'])
    for (const part of readdirSync(join(root, area)))
      for (const entry of readdirSync(join(root, area, part), { recursive: true, withFileTypes: true })) {
        const path = join(entry.parentPath, entry.name);
        if (!entry.isFile() || !path.endsWith('.ts') || !path.includes('/src/')) continue;
        if (path.includes('/node_modules/') || path.includes('/generated/') || path.includes('/gen/')) continue;
        found.set(path.slice(root.length + 1), readFileSync(path, 'utf8'));
      }
  return found;
}

test('instruments are made from the registry alone, and each one in it is used', () => {
  const files = sources();
  const makers = [...files].filter(([, text]) =>
    /\.create(Observable)?(Counter|Histogram|Gauge|UpDownCounter)\(/.test(text),
  );
  expect(makers.map(([path]) => path)).toEqual(['packages/telemetry/src/instruments.ts']);
  const elsewhere = [...files].filter(([path]) => !path.startsWith('packages/telemetry/src/metric-registry'));
  const unused = declared.map(([key]) => key).filter((key) => !elsewhere.some(([, text]) => text.includes(`'${key}'`)));
  expect(unused).toEqual([]);
});

test('an instrument is ours or one of the semantic conventions, described, and has no label that is an id', () => {
  const known = new Set<unknown>(Object.values(conventions));
  const ids = [
    attr.conversationId,
    attr.sessionId,
    attr.user,
    attr.device,
    attr.claimId,
    attr.keyRequestId,
    attr.messagingMessageId,
  ] as string[];
  for (const [key, { name, describe, attributes, buckets = [] }] of declared) {
    expect(name.startsWith('keytrail.') || known.has(name), name).toBe(true);
    expect(describe, key).not.toBe('');
    expect(
      attributes.filter((attribute) => ids.includes(attribute)),
      key,
    ).toEqual([]);
    expect(
      [...buckets].sort((a, b) => a - b),
      key,
    ).toEqual(buckets);
  }
  const series = declared.flatMap(([, instrument]) => prometheusSeries(instrument));
  expect(new Set(series).size).toBe(series.length);
});

test('names in Prometheus have the unit in full and say what counts', () => {
  const { serverCalls, misses, openKeyRequests, oldestOpenKeyRequest, timeToKey } = metricRegistry;
  expect([serverCalls, misses, openKeyRequests, oldestOpenKeyRequest].map(prometheusName)).toEqual([
    'rpc_server_call_duration_seconds',
    'keytrail_misses_total',
    'keytrail_key_requests_open',
    'keytrail_key_requests_oldest_age_seconds',
  ]);
  expect(prometheusSeries(timeToKey)).toContain('keytrail_key_requests_time_to_key_seconds_bucket');
});
