import { randomUUID } from 'node:crypto';
import { KeyRequestKind } from '@keytrail/contracts';
import { expect, it } from 'vitest';
import { startOtlpReceiver } from './otlp-receiver.ts';
import { createPerson, makeSession } from './people.ts';
import { startWorld } from './world.ts';

it('a key request is measured from its making to its end, by how it ended', { timeout: 60_000 }, async () => {
  const receiver = await startOtlpReceiver();
  const world = await startWorld({ otlpUrl: receiver.url, traceRatio: 0 }, { consumers: false, sweep: false });
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
  await receiver.stop();

  const ended = receiver.metrics.findLast(({ name }) => name === 'keytrail.key_requests.time_to_key');
  const points = ended?.histogram?.dataPoints ?? [];
  expect(ended?.unit).toBe('s');
  expect(points.map(({ count, attributes }) => [count, attributes[0]?.value.stringValue])).toEqual([[1, 'CANCELLED']]);
  expect(points[0]?.sum).toBeGreaterThan(7_200);
  expect(points[0]?.sum).toBeLessThan(7_300);
});
