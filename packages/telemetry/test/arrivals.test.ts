import { once } from 'node:events';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { expect, test } from 'vitest';
import { contextFromTraceparent, ROOT_CONTEXT, startTelemetry, trace, tracer } from '../src/index.ts';
import { config } from './fixture.ts';

test('what a process says it lost of its spans is what had no room for want of a root, and of a receiver', async () => {
  // It takes what comes and says nothing, for as long as it is asked to.
  const held: (() => void)[] = [];
  const server = createServer((request, response) => {
    request.resume();
    held.push(() => response.end('{}'));
  }).listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  const telemetry = startTelemetry({
    service: 'session',
    config: config({ KEYTRAIL_OTLP_URL: `http://127.0.0.1:${port}`, KEYTRAIL_TRACE_RATIO: '1' }),
    logTo: { write() {} },
  });
  try {
    const nothing = { exported: 0, failed: 0, overflowed: 0 };
    expect(telemetry.arrivals()).toMatchObject({ exporting: true, spans: nothing });
    // One batch is on its way, and 4,096 wait behind it.
    for (let n = 0; n < 256 + 4_096 + 7; n += 1) tracer().startSpan('sampled', {}, ROOT_CONTEXT).end();
    expect(telemetry.arrivals().spans).toMatchObject({ ...nothing, overflowed: 7 });
    const notSampled = contextFromTraceparent('00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00');
    const root = tracer().startSpan('Attach', {}, notSampled);
    const within = trace.setSpan(notSampled, root);
    // Half of what waits for a root goes when there is one too many.
    for (let n = 0; n < 513; n += 1) tracer().startSpan('notify', {}, within).end();
    expect(telemetry.arrivals().spans).toMatchObject({ ...nothing, overflowed: 7 + 256 });
  } finally {
    for (const answer of held) answer();
    server.close();
    server.closeAllConnections();
    await telemetry.shutdown();
  }
});

test('a process without telemetry says that it exports nothing', async () => {
  const telemetry = startTelemetry({
    service: 'session',
    config: config({ KEYTRAIL_TELEMETRY: 'off' }),
    logTo: { write() {} },
  });
  expect(telemetry.arrivals()).toEqual({
    exporting: false,
    spans: { exported: 0, failed: 0, overflowed: 0 },
    metrics: {},
  });
  await telemetry.shutdown();
});
