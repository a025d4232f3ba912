import { SessionService } from '@keytrail/contracts';
import { consumers } from '@keytrail/events';
import { expect, test } from 'vitest';
import { assembleTrace, consumersOfSubjects, findMissingHops, type TraceSpan } from '../src/index.ts';
import { rpc, span } from './fixture.ts';
import { wholeRecovery } from './whole-recovery.ts';

const endOf = (spans: readonly TraceSpan[]) =>
  Math.max(...spans.map(({ startMs, durationMs }) => startMs + durationMs));

/** As it is read right after its last span. */
function missingIn(spans: readonly TraceSpan[], afterMs = 1_000) {
  return findMissingHops(assembleTrace(spans), { nowMs: endOf(spans) + afterMs }).map(
    ({ code, service, operation, certain }) =>
      `${certain ? '' : 'perhaps '}${code} ${service} ${operation.split('/').at(-1)}`,
  );
}

function without(...names: string[]): TraceSpan[] {
  for (const name of names) if (!wholeRecovery.some((one) => one.name === name)) throw new Error(`there is no ${name}`);
  return wholeRecovery.filter((one) => !names.includes(one.name));
}

test('a whole trace of a miss and its cure lacks nothing', () => {
  expect(missingIn(wholeRecovery)).toEqual([]);
});

test('a call whose server recorded nothing is pointed out, and why depends on what the call ended with', () => {
  const spans = wholeRecovery.filter((one) => one.service !== 'conversation');
  expect(missingIn(spans)).toEqual(['CALL_NOT_SERVED conversation CheckEntitlement']);
  expect(findMissingHops(assembleTrace(spans))[0]?.likely[0]).toMatch(/nothing of conversation is in the trace/);
  const unreached = spans.map((one) =>
    one.kind === 'client' && one.name === 'CheckEntitlement'
      ? { ...one, attributes: { ...one.attributes, 'rpc.status_code': 'UNAVAILABLE' } }
      : one,
  );
  expect(findMissingHops(assembleTrace(unreached))[0]?.likely[0]).toMatch(/was not reached/);
});

test('a miss whose answer asked nobody is pointed out, except for presence, whom it may rightly not ask', () => {
  const spans = wholeRecovery.filter((one) => !/CheckEntitlement|GetDevices|ListOnline|HGETALL/.test(one.name));
  expect(missingIn(spans)).toEqual([
    'MISS_NOT_EXPLAINED session CheckEntitlement',
    'MISS_NOT_EXPLAINED session GetDevices',
    'perhaps MISS_NOT_EXPLAINED session ListOnline',
  ]);
});

test('what was written to the outbox and never published is pointed out, a rolled-back write is not', () => {
  const unpublished = wholeRecovery.filter(
    (one) => ['device', 'session'].includes(one.service) && one.kind !== 'producer',
  );
  const own = unpublished.filter((one) => !one.name.includes('offer') && one.name !== 'FulfillKeyRequest');
  expect(missingIn(own).filter((each) => each.startsWith('EVENT'))).toEqual([
    'EVENT_NOT_PUBLISHED session publish of what was written to the outbox',
  ]);
  const undone = own.map((one) => (one.name === 'commit' ? { ...one, name: 'rollback' } : one));
  expect(missingIn(undone).filter((each) => each.startsWith('EVENT'))).toEqual([]);
});

test('an event without the consumer that the catalogue names is pointed out; what only outsiders consume is not', () => {
  expect(missingIn(wholeRecovery.filter((one) => one.service !== 'presence' && one.service !== 'device'))).toContain(
    'EVENT_NOT_PROCESSED presence process keytrail.session.v1.notification_requested (presence-notifier)',
  );
  const outsiders = span('session', '1', '', 'publish keytrail.session.v1.key_delivered', [0, 1], {
    kind: 'producer',
    attributes: { 'messaging.destination.name': 'keytrail.session.v1.key_delivered' },
  });
  expect(missingIn([outsiders])).toEqual([]);
});

test('an event that is older than a consumer goes on in its trace may have been processed in another one', () => {
  const spans = wholeRecovery.filter((one) => one.service !== 'presence' && one.service !== 'device');
  const published = spans.filter(({ kind }) => kind === 'producer');
  const hop = 'EVENT_NOT_PROCESSED presence process keytrail.session.v1.notification_requested (presence-notifier)';
  expect(missingIn(published, 29_999)).toContain(hop);
  expect(missingIn(published, 30_000)).toContain(`perhaps ${hop}`);
});

test('the model names the consumers of every event as the catalogue does', () => {
  const declared = Object.values(consumers).flatMap(({ name, events }) =>
    events.map(({ subject }) => `${subject} ${name}`),
  );
  const modelled = Object.entries(consumersOfSubjects).flatMap(([subject, ofSubject]) =>
    ofSubject.map(({ consumer }) => `${subject} ${consumer}`),
  );
  expect(modelled.toSorted()).toEqual(declared.toSorted());
});

test('a notification that reached no stream may be right; one that was forwarded and not delivered is not', () => {
  expect(missingIn(without('deliver notification', 'answer offer'))).toContain(
    'perhaps NOTIFICATION_NOT_DELIVERED presence deliver notification',
  );
  const process = wholeRecovery.find((one) => one.kind === 'consumer') as TraceSpan;
  const forwarded = span('presence', 'f0', process.spanId, 'publish keytrail.gateway.{gateway}.deliver', [40, 1], {
    kind: 'producer',
  });
  expect(missingIn([...without('deliver notification', 'answer offer'), forwarded])).toContain(
    'NOTIFICATION_NOT_DELIVERED presence deliver notification',
  );
});

test('an offer that no device took up is pointed out as perhaps', () => {
  const spans = without('answer offer').filter(
    (one) => one.spanId < '00000000000000b0' || one.spanId > '00000000000000bf',
  );
  expect(missingIn(spans)).toEqual(['perhaps OFFER_NOT_ANSWERED device answer offer']);
  expect(findMissingHops(assembleTrace(spans))[0]?.likely[0]).toMatch(/sleeps, or went away/);
});

test('that a device declined an offer is an answer', () => {
  const [delivered] = wholeRecovery.filter((one) => one.name === 'deliver notification');
  if (!delivered) throw new Error('nothing was delivered');
  const declined = span('session', 'd1', '', 'DeclineOffer', [delivered.startMs + 1, 1], {
    kind: 'server',
    ...rpc(`${SessionService.typeName}/${SessionService.method.declineOffer.name}`, 'OK'),
  });
  const spans = [...without('answer offer', 'FulfillKeyRequest'), declined];
  const told = findMissingHops(assembleTrace(spans)).find(({ code }) => code === 'OFFER_NOT_ANSWERED');
  expect(told?.likely).toEqual(['the device answered, and records no spans itself']);
});

test('what a service did not sample of a device is missing for certain only when it had to be kept', () => {
  const asked = (code: string) =>
    span('devices', '1', '', 'GetInitialSession', [0, 5], {
      kind: 'client',
      ...rpc('keytrail.session.v1.SessionService/GetInitialSession', code),
    });
  expect(missingIn([asked('OK')])).toEqual(['perhaps CALL_NOT_SERVED session GetInitialSession']);
  expect(missingIn([asked('NOT_FOUND')])).toEqual(['CALL_NOT_SERVED session GetInitialSession']);
});

test('a server span whose device records nothing lacks nothing for certain; one called by a service does', () => {
  const ofDevice = span('session', '2', '1', 'GetInitialSession', [0, 1], {
    kind: 'server',
    ...rpc('keytrail.session.v1.SessionService/GetInitialSession', 'OK', { 'keytrail.caller.kind': 'device' }),
  });
  expect(missingIn([ofDevice])).toEqual(['perhaps CALLER_MISSING device GetInitialSession']);
  const ofService = span('presence', '2', '1', 'ListOnline', [0, 1], {
    kind: 'server',
    ...rpc('keytrail.presence.v1.PresenceService/ListOnline', 'OK', { 'keytrail.caller.kind': 'service' }),
  });
  expect(missingIn([ofService])).toEqual(['CALLER_MISSING session or conversation ListOnline']);
});

test('who called is told from the call that nobody served while it went on', () => {
  const spans = wholeRecovery.filter((one) => one.service !== 'session');
  const callers = findMissingHops(assembleTrace(spans)).filter(({ code }) => code === 'CALLER_MISSING');
  expect(callers.length).toBeGreaterThan(0);
  expect(new Set(callers.map(({ service }) => service))).toEqual(new Set(['session']));
});

test('spans that name the same absent parent point to one missing hop, and a device to the delivery that it goes on with', () => {
  const two = [span('session', '2', '1', 'read_a', [0, 1]), span('session', '3', '1', 'read_b', [1, 1])];
  const [hop, ...more] = findMissingHops(assembleTrace(two));
  expect(more).toEqual([]);
  expect(hop).toMatchObject({ code: 'PARENT_MISSING', service: 'session', above: [two[0]?.spanId, two[1]?.spanId] });
  expect(missingIn([span('devices', '2', '1', 'answer offer', [0, 1])])).toEqual([
    'PARENT_MISSING presence deliver notification',
  ]);
});
