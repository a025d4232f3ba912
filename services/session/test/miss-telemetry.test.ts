import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { expect, it } from 'vitest';
import { createPerson, makeSession } from './people.ts';
import { refusalOf, startWorld } from './world.ts';

interface Attribute {
  readonly key: string;
  readonly value: { readonly stringValue?: string };
}

interface Span {
  readonly traceId: string;
  readonly spanId: string;
  readonly name: string;
  readonly attributes: Attribute[];
  readonly links?: { readonly traceId: string; readonly spanId: string }[];
}

interface Metric {
  readonly name: string;
  readonly sum?: { readonly dataPoints: { readonly asDouble?: number; readonly attributes: Attribute[] }[] };
}

/** An OTLP/HTTP receiver that keeps what it gets. */
async function startReceiver() {
  const spans: Span[] = [];
  const metrics: Metric[] = [];
  const server = createServer(async (request, response) => {
    const chunks: Buffer[] = [];
    for await (const chunk of request) chunks.push(chunk as Buffer);
    const { resourceSpans = [], resourceMetrics = [] } = JSON.parse(Buffer.concat(chunks).toString());
    for (const { scopeSpans } of resourceSpans) for (const scope of scopeSpans) spans.push(...scope.spans);
    for (const { scopeMetrics } of resourceMetrics) for (const scope of scopeMetrics) metrics.push(...scope.metrics);
    response.writeHead(200, { 'content-type': 'application/json' }).end('{}');
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as AddressInfo;
  return {
    url: `http://127.0.0.1:${port}`,
    spans,
    metrics,
    stop: () => new Promise((resolve) => server.close(resolve)),
  };
}

function attributeOf(attributes: readonly Attribute[], key: string): string | undefined {
  return attributes.find((attribute) => attribute.key === key)?.value.stringValue;
}

it('a miss is counted by its cause, and its span leads to the trace of the write', { timeout: 60_000 }, async () => {
  const receiver = await startReceiver();
  const world = await startWorld({ otlpUrl: receiver.url, traceRatio: 0 }, { consumers: false, sweep: false });
  const [alice, bob] = [createPerson('alice'), createPerson('bob')];
  const initiator = alice.addDevice();
  const made = makeSession({ initiator, covered: [initiator, bob.addDevice()] });
  const { conversationId, sessionId } = made.session;
  await world.store(made);
  world.peers.commit(made, [alice, bob]);
  const { rows } = await world.sql.query('SELECT created_traceparent, created_trace_id FROM sessions');
  const [, writeTraceId, writeSpanId] = String(rows[0]?.created_traceparent).split('-');
  expect(rows[0]?.created_trace_id).toBe(writeTraceId);

  const later = bob.addDevice();
  const missOf = async (id: string) =>
    (await refusalOf(world.as(later).getInitialSession({ conversationId, sessionId: id }))).miss;
  const miss = await missOf(sessionId);
  await missOf(sessionId);
  const unknown = await missOf('no-such-session');
  // Of a session that is not there, the last write is conversation's to know.
  expect(unknown?.causedByTraceId).toBe('f'.repeat(32));
  expect(miss?.causedByTraceId).toBe(writeTraceId);
  // What waits is sent before telemetry stops.
  await world.stop();
  await receiver.stop();

  const missed = receiver.spans.find(
    ({ traceId, attributes }) =>
      traceId === miss?.traceId && attributeOf(attributes, 'keytrail.miss.cause') !== undefined,
  );
  expect(attributeOf(missed?.attributes ?? [], 'keytrail.miss.cause')).toBe('DEVICE_ADDED_AFTER_SESSION');
  // The write of the session, and the last change of the conversation, which the other service knows by its trace alone.
  expect(missed?.links).toMatchObject([{ traceId: writeTraceId, spanId: writeSpanId }, { traceId: 'f'.repeat(32) }]);
  expect(writeTraceId).not.toBe(miss?.traceId);
  // The write itself was kept, unsampled as it was: the link leads somewhere.
  expect(receiver.spans.map(({ spanId }) => spanId)).toContain(writeSpanId);

  const points = receiver.metrics.findLast(({ name }) => name === 'keytrail.misses')?.sum?.dataPoints ?? [];
  const counts = points.map(({ asDouble, attributes }) => [
    `${attributeOf(attributes, 'keytrail.miss.cause')} ${attributeOf(attributes, 'keytrail.recovery')}`,
    asDouble,
  ]);
  expect(Object.fromEntries(counts)).toEqual({
    'DEVICE_ADDED_AFTER_SESSION REQUESTABLE': 2,
    'SESSION_UNKNOWN NO_HOLDER_EXISTS': 1,
  });
});
