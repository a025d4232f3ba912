import type { TraceSpan } from '../src/index.ts';

const traceId = '0af7651916cd43dd8448eb211c80319c';
const startMs = 1_795_384_000_000;

/** A span of one trace, `at` ms after its start. */
export function span(
  service: string,
  spanId: string,
  parentSpanId: string,
  name: string,
  [at, durationMs]: [number, number],
  more: Partial<TraceSpan> = {},
): TraceSpan {
  return {
    traceId,
    spanId: spanId.padStart(16, '0'),
    parentSpanId: parentSpanId === '' ? '' : parentSpanId.padStart(16, '0'),
    name,
    kind: 'internal',
    service,
    instance: `${service}-1`,
    build: '0.1.0+3f2a9c0d1e4b',
    startMs: startMs + at,
    durationMs,
    status: 'unset',
    statusMessage: '',
    attributes: {},
    events: [],
    links: [],
    ...more,
  };
}

export function rpc(method: string, code: string, more: Record<string, unknown> = {}): Partial<TraceSpan> {
  return { attributes: { 'rpc.system.name': 'grpc', 'rpc.method': method, 'rpc.status_code': code, ...more } };
}

const miss = { 'keytrail.miss': true, 'keytrail.miss.cause': 'DEVICE_ADDED_AFTER_SESSION' };
const getInitialSession = 'keytrail.session.v1.SessionService/GetInitialSession';

/** A device's read that misses, the explanation, and the request that follows. */
export const missedRead: TraceSpan[] = [
  span('client', '1', '', 'readSession', [0, 48.2], { attributes: miss }),
  span('client', '2', '1', getInitialSession, [0.4, 11.9], {
    kind: 'client',
    ...rpc(getInitialSession, 'NOT_FOUND', miss),
  }),
  span('session', '3', '2', getInitialSession, [1.1, 10.2], {
    kind: 'server',
    ...rpc(getInitialSession, 'NOT_FOUND', { ...miss, 'keytrail.recovery': 'REQUESTABLE' }),
    links: [{ traceId: '11111111111111111111111111111111', spanId: '2222222222222222', attributes: {} }],
  }),
  span('session', '4', '3', 'SELECT get-initial-session', [1.4, 0.62], {
    kind: 'client',
    attributes: { 'db.system.name': 'postgresql' },
  }),
  span('session', '6', '3', 'CheckEntitlement', [2.2, 3.1], {
    kind: 'client',
    ...rpc('keytrail.conversation.v1.ConversationService/CheckEntitlement', 'OK'),
  }),
  span('conversation', '7', '6', 'CheckEntitlement', [2.9, 1.8], {
    kind: 'server',
    ...rpc('keytrail.conversation.v1.ConversationService/CheckEntitlement', 'OK'),
  }),
  span('session', '5', '3', 'ListOnline', [5.6, 2.4], {
    kind: 'client',
    status: 'error',
    statusMessage: 'the connection was refused\nat connect',
    ...rpc('keytrail.presence.v1.PresenceService/ListOnline', 'UNAVAILABLE'),
  }),
  span('session', '8', '1', 'publish keytrail.session.v1.key-requested', [14, 1.2], { kind: 'producer' }),
  span('session', '9', '8', 'process keytrail.session.v1.key-requested', [16.5, 8.75], {
    kind: 'consumer',
    links: [{ traceId, spanId: '0000000000000003', attributes: {} }],
  }),
  span('session', 'a', '9', 'EVALSHA', [17, 0.2], { kind: 'client', attributes: { 'db.system.name': 'redis' } }),
  span('presence', 'c', 'b', 'notify', [30, 12_345], {}),
  span('presence', 'd', 'c', 'write', [31, 104.4], { attributes: { 'keytrail.reason': 'STREAM_ENDED' } }),
];
