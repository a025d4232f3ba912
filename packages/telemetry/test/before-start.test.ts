import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { expect, test } from 'vitest';
import {
  attr,
  count,
  currentTraceId,
  currentTraceparent,
  keepTrace,
  markMiss,
  startTelemetry,
  withSpan,
} from '../src/index.ts';
import { config } from './fixture.ts';

test('before the start spans are no-ops around the work', async () => {
  expect(withSpan('sync', {}, () => 4)).toBe(4);
  await expect(withSpan('async', {}, async () => 5)).resolves.toBe(5);
  expect(() =>
    withSpan('throws', {}, () => {
      throw new Error('through');
    }),
  ).toThrow('through');
  withSpan('says', {}, () => {
    markMiss('SESSION_UNKNOWN');
    keepTrace('why');
    expect([currentTraceId(), currentTraceparent()]).toEqual(['', '']);
  });
});

test('instruments made before the start are exported after it, beside the build', async () => {
  const bodies: string[] = [];
  const receiver = createServer(async (request, response) => {
    const chunks: Buffer[] = [];
    for await (const chunk of request) chunks.push(chunk as Buffer);
    if (request.url === '/v1/metrics') bodies.push(Buffer.concat(chunks).toString());
    response.writeHead(200, { 'content-type': 'application/json' }).end('{}');
  });
  await new Promise<void>((resolve) => receiver.listen(0, '127.0.0.1', resolve));
  count('misses', 2, { [attr.missCause]: 'SESSION_UNKNOWN' });

  const url = `http://127.0.0.1:${(receiver.address() as AddressInfo).port}`;
  const telemetry = startTelemetry({ service: 'session', config: config({ KEYTRAIL_OTLP_URL: url }) });
  const second = startTelemetry({ service: 'presence', config: config({ KEYTRAIL_OTLP_URL: url }) });
  await second.shutdown();
  await second.shutdown();
  expect(bodies).toEqual([]);
  await telemetry.shutdown();
  receiver.closeAllConnections();
  receiver.close();

  const sent = bodies.join('');
  for (const part of [
    '"keytrail.misses"',
    '"keytrail.build_info"',
    telemetry.build.sourcesDigest,
    '"keytrail.telemetry.spans"',
  ])
    expect(sent).toContain(part);
  expect(sent).toContain('{"key":"service.name","value":{"stringValue":"session"}}');
});

test('a receiver that is away does not hold up the shutdown', async () => {
  const unreachable = config({ KEYTRAIL_OTLP_URL: 'http://127.0.0.1:9', KEYTRAIL_TRACE_RATIO: '1' });
  const telemetry = startTelemetry({ service: 'session', config: unreachable });
  withSpan('lost', {}, () => {});
  await expect(telemetry.shutdown()).resolves.toBeUndefined();
});
