import { randomUUID } from 'node:crypto';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { KeyRequestKind } from '@keytrail/contracts';
import { expect, it } from 'vitest';
import { createPerson, makeSession } from './people.ts';
import { startWorld } from './world.ts';

interface Point {
  readonly count?: number;
  readonly sum?: number;
  readonly attributes: readonly { readonly key: string; readonly value: { readonly stringValue?: string } }[];
}

interface Metric {
  readonly name: string;
  readonly unit: string;
  readonly histogram?: { readonly dataPoints: readonly Point[] };
}

it('a key request is measured from its making to its end, by how it ended', { timeout: 60_000 }, async () => {
  const metrics: Metric[] = [];
  const server = createServer(async (request, response) => {
    const chunks: Buffer[] = [];
    for await (const chunk of request) chunks.push(chunk as Buffer);
    const { resourceMetrics = [] } = JSON.parse(Buffer.concat(chunks).toString());
    for (const { scopeMetrics } of resourceMetrics) for (const scope of scopeMetrics) metrics.push(...scope.metrics);
    response.writeHead(200, { 'content-type': 'application/json' }).end('{}');
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const otlpUrl = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  const world = await startWorld({ otlpUrl, traceRatio: 0 }, { consumers: false, sweep: false });
  const [alice, bob] = [createPerson('alice'), createPerson('bob')];
  const initiator = alice.addDevice();
  const made = makeSession({ initiator, covered: [initiator, bob.addDevice()] });
  const { conversationId, sessionId } = made.session;
  await world.store(made);
  world.peers.commit(made, [alice, bob]);
  const later = bob.addDevice();
  const wanted = { conversationId, sessionId, kind: KeyRequestKind.MISSING, requestId: randomUUID() };
  const { keyRequest } = await world.as(later).requestKey(wanted);
  const keyRequestId = keyRequest?.keyRequestId ?? '';
  await world.sql.query(`UPDATE key_requests SET requested_at = requested_at - interval '2 hours'`);
  await world.as(later).cancelKeyRequest({ keyRequestId });
  await world.stop();
  server.closeAllConnections();
  server.close();

  const ended = metrics.findLast(({ name }) => name === 'keytrail.key_requests.time_to_key');
  const points = ended?.histogram?.dataPoints ?? [];
  expect(ended?.unit).toBe('s');
  expect(points.map(({ count, attributes }) => [count, attributes[0]?.value.stringValue])).toEqual([[1, 'CANCELLED']]);
  expect(points[0]?.sum).toBeGreaterThan(7_200);
  expect(points[0]?.sum).toBeLessThan(7_300);
});
