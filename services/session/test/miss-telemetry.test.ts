import { randomUUID } from 'node:crypto';
import { KeyRequestKind, MissCause, MissCauseSchema, missCauseName, Recovery, Remedy } from '@keytrail/contracts';
import type { Call } from '@keytrail/rpc';
import { readSettings } from '@keytrail/settings';
import { startTelemetry, telemetrySettings, withSpan } from '@keytrail/telemetry';
import { expect, it } from 'vitest';
import type { Explanation, Incomplete } from '../src/domain/explain-miss.ts';
import { type GatheredFacts, refuseExplained } from '../src/miss.ts';
import { attributeOf, type Metric, startOtlpReceiver } from './otlp-receiver.ts';
import { createPerson, makeSession } from './people.ts';
import { refusalOf, startWorld } from './world.ts';

/** How often each cause and state of recovery was counted. */
function countedMisses(metrics: readonly Metric[]): Record<string, number | undefined> {
  const points = metrics.findLast(({ name }) => name === 'keytrail.misses')?.sum?.dataPoints ?? [];
  return Object.fromEntries(
    points.map(({ asDouble, attributes }) => [
      `${attributeOf(attributes, 'keytrail.miss.cause')} ${attributeOf(attributes, 'keytrail.recovery')}`,
      asDouble,
    ]),
  );
}

it('a miss is counted by its cause, and its span leads to the trace of the write', { timeout: 60_000 }, async () => {
  const receiver = await startOtlpReceiver();
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
  const asked = { requestId: randomUUID(), conversationId, sessionId: 'nobody-made-it', kind: KeyRequestKind.MISSING };
  const request = await refusalOf(world.as(later).requestKey(asked));
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

  expect(countedMisses(receiver.metrics)).toEqual({
    'DEVICE_ADDED_AFTER_SESSION REQUESTABLE': 2,
    'SESSION_UNKNOWN NO_HOLDER_EXISTS': 2,
  });

  // A miss names what it is about in the trace of a request too: `keytrail explain --trace` has nothing else.
  for (const [traceId, id] of [
    [miss?.traceId, sessionId],
    [request.miss?.traceId, 'nobody-made-it'],
  ]) {
    const span = receiver.spans.find(
      (each) => each.traceId === traceId && attributeOf(each.attributes, 'keytrail.miss.cause') !== undefined,
    );
    expect(attributeOf(span?.attributes ?? [], 'keytrail.conversation.id')).toBe(conversationId);
    expect(attributeOf(span?.attributes ?? [], 'keytrail.session.id')).toBe(id);
  }
});

it('every cause is counted under its name and kept, and so is a miss that could not be explained', async () => {
  const receiver = await startOtlpReceiver();
  const environment = {
    KEYTRAIL_ENVIRONMENT: 'development',
    KEYTRAIL_OTLP_URL: receiver.url,
    KEYTRAIL_TRACE_RATIO: '0',
  };
  const config = readSettings(telemetrySettings, environment);
  const telemetry = startTelemetry({ service: 'session', instance: 'session-1', config });
  const nothingKnown = {
    local: {},
    ranked: [],
    answers: { entitlement: { known: false, peer: 'conversation' } },
  } as unknown as GatheredFacts;
  const miss = async (explanation: Explanation | Incomplete) =>
    withSpan('read', {}, async () => {
      refuseExplained(
        { conversationId: 'c', sessionId: 's' },
        explanation,
        nothingKnown,
        { offerMs: 1, waitMs: 1, helpBaseUrl: '' },
        { traceId: '' } as Call,
      );
    });
  const causes = MissCauseSchema.values
    .map(({ number }) => number as MissCause)
    .filter((cause) => cause !== MissCause.UNSPECIFIED);
  for (const cause of causes)
    await miss({
      kind: 'miss',
      cause,
      recovery: Recovery.PENDING_OFFERED,
      remedy: Remedy.REQUEST_KEY,
      evidence: {},
      keyRequestId: '',
      retryAfterMs: 0,
    });
  await miss({ kind: 'incomplete', peer: 'presence' });
  await telemetry.shutdown();
  await receiver.stop();

  const names = causes.map(missCauseName);
  expect(names).toContain('ENVELOPE_MISSING');
  // Those of the test above, counted in the same process, have other states of recovery.
  expect(countedMisses(receiver.metrics)).toMatchObject({
    ...Object.fromEntries(names.map((name) => [`${name} PENDING_OFFERED`, 1])),
    'EXPLANATION_INCOMPLETE UNSPECIFIED': 1,
  });
  const kept = receiver.spans.map(({ attributes }) => attributeOf(attributes, 'keytrail.miss.cause'));
  expect(kept.toSorted()).toEqual([...names, 'EXPLANATION_INCOMPLETE'].toSorted());
});
