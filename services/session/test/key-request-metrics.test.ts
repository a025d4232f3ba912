import { randomUUID } from 'node:crypto';
import { KeyRejectionReason, KeyRequestKind } from '@keytrail/contracts';
import { keyRequestEnded } from '@keytrail/events';
import { expect, it } from 'vitest';
import { type Metric, startOtlpReceiver } from './otlp-receiver.ts';
import { createPerson, makeSession, reseal } from './people.ts';
import { startWorld } from './world.ts';

/** How many a counter or histogram has of each value of its first label. */
function countsOf(metric: Metric | undefined): [string | undefined, number][] {
  const points = metric?.histogram?.dataPoints ?? metric?.sum?.dataPoints ?? [];
  return points.map(({ count = 0, asDouble = count, attributes }) => [attributes[0]?.value.stringValue, asDouble]);
}

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

it('the objective counts a request that no holder answered, and not one that ends for the envelopes rejected before', {
  timeout: 60_000,
}, async () => {
  const receiver = await startOtlpReceiver();
  const world = await startWorld(
    { otlpUrl: receiver.url, traceRatio: 0, offerMs: 50, attemptsMax: 2, sweepMs: 20, rejectionsMax: 1 },
    { consumers: false },
  );
  const [alice, bob] = [createPerson('alice'), createPerson('bob')];
  const initiator = alice.addDevice();
  const bobs = bob.addDevice();
  const made = makeSession({ initiator, covered: [initiator, bobs] });
  const { conversationId, sessionId } = made.session;
  await world.store(made);
  const later = bob.addDevice();
  world.peers.commit(made, [alice, bob]);
  world.peers.attach(initiator);
  const of = { conversationId, sessionId };
  const ask = async () => {
    const wanted = { ...of, kind: KeyRequestKind.MISSING, requestId: randomUUID() };
    return (await world.as(later).requestKey(wanted)).keyRequest;
  };

  const silent = await ask();
  await world.event(keyRequestEnded, ({ keyRequestId }) => keyRequestId === silent?.keyRequestId);
  const answered = await ask();
  const { keyRequestId = '', attempt = 0 } = answered ?? {};
  const envelope = reseal(made, initiator, later, attempt);
  await world.as(initiator).fulfillKeyRequest({ requestId: randomUUID(), keyRequestId, attempt, envelope });
  const rejected = await world
    .as(later)
    .rejectKey({ ...of, requestId: randomUUID(), attempt, reason: KeyRejectionReason.COMMITMENT });
  expect(rejected.keyRequest?.endedBecause).toBe('attempts_exhausted');
  await world.stop();
  await receiver.stop();

  const last = (name: string) => receiver.metrics.findLast((metric) => metric.name === name);
  expect(countsOf(last('keytrail.key_requests.time_to_key'))).toContainEqual(['UNFULFILLABLE', 2]);
  expect(countsOf(last('keytrail.key_requests.offer_to_key')).sort()).toEqual([
    ['FULFILLED', 1],
    ['UNFULFILLABLE', 1],
  ]);
});
