import { randomUUID } from 'node:crypto';
import { KeyRejectionReason, KeyRequestKind } from '@keytrail/contracts';
import { keyRequestEnded } from '@keytrail/events';
import { afterAll, beforeAll, expect, it, vi } from 'vitest';
import { type Point, startOtlpReceiver } from './otlp-receiver.ts';
import { createPerson, makeSession, reseal } from './people.ts';
import { startWorld, type World } from './world.ts';

let receiver: Awaited<ReturnType<typeof startOtlpReceiver>>;
let world: World;
beforeAll(async () => {
  receiver = await startOtlpReceiver();
  world = await startWorld(
    {
      ...{ otlpUrl: receiver.url, traceRatio: 0, metricsExportMs: 200 },
      ...{ offerMs: 60_000, attemptsMax: 1, waitMs: 60_000, sweepMs: 20, rejectionsMax: 1 },
    },
    { consumers: false },
  );
}, 120_000);
afterAll(async () => {
  await world?.stop();
  await receiver?.stop();
});

const points = (name: string): readonly Point[] => {
  const last = receiver.metrics.findLast((metric) => metric.name === `keytrail.key_requests.${name}`);
  return last?.histogram?.dataPoints ?? last?.sum?.dataPoints ?? [];
};
const labelOf = ({ attributes }: Point) => attributes[0]?.value.stringValue;
/** How many were measured, by the first label. */
const counts = (name: string) => Object.fromEntries(points(name).map((point) => [labelOf(point), point.count]));

/** A session of Alice with Bob, and a request of a device of Bob's that came later. */
async function missing() {
  const [alice, bob] = [createPerson('alice'), createPerson('bob')];
  const initiator = alice.addDevice();
  const made = makeSession({ initiator, covered: [initiator, bob.addDevice()] });
  await world.store(made);
  const late = bob.addDevice();
  world.peers.commit(made, [alice, bob]);
  const { conversationId, sessionId } = made.session;
  const of = { conversationId, sessionId };
  const ask = async () => {
    const wanted = { ...of, kind: KeyRequestKind.MISSING, requestId: randomUUID() };
    const { keyRequest } = await world.as(late).requestKey(wanted);
    return { keyRequestId: keyRequest?.keyRequestId ?? '', attempt: keyRequest?.attempt ?? 0 };
  };
  return { initiator, late, made, of, ask };
}

it('a key request is measured from its making to its end, by how it ended', async () => {
  const { late, ask } = await missing();
  const { keyRequestId } = await ask();
  await world.sql.query(`UPDATE key_requests SET requested_at = requested_at - interval '2 hours'`);
  await world.as(late).cancelKeyRequest({ keyRequestId });
  await vi.waitFor(() => expect(counts('time_to_key')).toEqual({ CANCELLED: 1 }), { timeout: 10_000 });
  const [point] = points('time_to_key');
  expect(receiver.metrics.findLast(({ name }) => name === 'keytrail.key_requests.time_to_key')?.unit).toBe('s');
  expect(point?.sum).toBeGreaterThan(7_200);
  expect(point?.sum).toBeLessThan(7_300);
});

it('the objective counts a request that no holder answered, and not one that ends for the envelopes rejected before', async () => {
  const { initiator, late, made, of, ask } = await missing();
  world.peers.attach(initiator);
  const silent = await ask();
  await world.sql.query('UPDATE offers SET lapses_at = now() WHERE key_request_id = $1', [silent.keyRequestId]);
  await world.sql.query('UPDATE key_requests SET next_attempt_at = now() WHERE key_request_id = $1', [
    silent.keyRequestId,
  ]);
  await world.event(keyRequestEnded, ({ keyRequestId }) => keyRequestId === silent.keyRequestId);

  const { keyRequestId, attempt } = await ask();
  const envelope = reseal(made, initiator, late, attempt);
  await world.as(initiator).fulfillKeyRequest({ requestId: randomUUID(), keyRequestId, attempt, envelope });
  const reason = KeyRejectionReason.COMMITMENT;
  const rejected = await world.as(late).rejectKey({ ...of, requestId: randomUUID(), attempt, reason });
  expect(rejected.keyRequest?.endedBecause).toBe('attempts_exhausted');
  await vi.waitFor(() => expect(counts('time_to_key')).toMatchObject({ UNFULFILLABLE: 2 }), { timeout: 10_000 });
  expect(counts('offer_to_key')).toEqual({ FULFILLED: 1, UNFULFILLABLE: 1 });
});

it('a look that cannot be made is counted, each time', async () => {
  world.peers.online.clear();
  const { keyRequestId } = await (await missing()).ask();
  await world.peers.stop();
  await world.sql.query('UPDATE key_requests SET next_attempt_at = now() WHERE key_request_id = $1', [keyRequestId]);
  await vi.waitFor(() => expect(points('postponed')[0]?.asDouble ?? 0).toBeGreaterThan(1), { timeout: 10_000 });
  expect(points('postponed').map(labelOf)).toEqual(['peer_away']);
});
