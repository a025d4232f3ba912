import type { TraceSpan } from '../src/index.ts';
import { rpc, span } from './fixture.ts';

const session = 'keytrail.session.v1.SessionService';
const conversation = 'keytrail.conversation.v1.ConversationService';
const identityKeys = 'keytrail.identitykeys.v1.IdentityKeysService';
const presence = 'keytrail.presence.v1.PresenceService';
const requested = 'keytrail.session.v1.notification_requested';
const miss = { 'keytrail.miss': true, 'keytrail.miss.cause': 'DEVICE_ADDED_AFTER_SESSION' };

function call(
  ids: readonly [string, string, string],
  by: string,
  of: string,
  method: string,
  at: [number, number],
  more: Record<string, unknown> = {},
  code = 'OK',
): TraceSpan[] {
  const name = method.split('/')[1] ?? '';
  const kindOfCaller = by === 'device' ? 'device' : 'service';
  return [
    span(by, ids[0], ids[2], name, at, { kind: 'client', ...rpc(method, code, more) }),
    span(of, ids[1], ids[0], name, [at[0] + 0.2, at[1] - 0.4], {
      kind: 'server',
      ...rpc(method, code, { ...more, 'keytrail.caller.kind': kindOfCaller }),
    }),
  ];
}

function store(
  service: string,
  id: string,
  parent: string,
  name: string,
  at: number,
  system = 'postgresql',
): TraceSpan {
  return span(service, id, parent, name, [at, 0.5], { kind: 'client', attributes: { 'db.system.name': system } });
}

function message(service: string, id: string, parent: string, what: 'publish' | 'process', at: number): TraceSpan {
  return span(service, id, parent, `${what} ${requested}`, [at, 2], {
    kind: what === 'publish' ? 'producer' : 'consumer',
    attributes: {
      'messaging.destination.name': requested,
      ...(what === 'process' && { 'messaging.consumer.group.name': 'presence-notifier' }),
    },
  });
}

/** A miss, its explanation, the request, the offer, and the holder's answer: every hop that there should be. */
export const wholeRecovery: readonly TraceSpan[] = [
  span('device', '1', '', 'open session', [0, 100]),
  ...call(['2', '3', '1'], 'device', 'session', `${session}/GetInitialSession`, [1, 20], miss, 'NOT_FOUND').map(
    (one) =>
      one.kind === 'server'
        ? { ...one, links: [{ traceId: '1'.repeat(32), spanId: '2'.repeat(16), attributes: {} }] }
        : one,
  ),
  store('session', '4', '3', 'read_initial_session', 1.5),
  ...call(['5', '6', '3'], 'session', 'conversation', `${conversation}/CheckEntitlement`, [3, 4]),
  ...call(['7', '8', '3'], 'session', 'identity-keys', `${identityKeys}/GetDevices`, [3, 4]),
  ...call(['9', 'a', '3'], 'session', 'presence', `${presence}/ListOnline`, [3, 4]),
  store('presence', 'c', 'a', 'HGETALL', 4, 'redis'),
  ...call(['20', '21', '1'], 'device', 'session', `${session}/RequestKey`, [22, 8]),
  store('session', '22', '21', 'outbox_add', 24),
  store('session', '23', '21', 'commit', 25),
  message('session', '30', '21', 'publish', 28),
  message('presence', '31', '30', 'process', 31),
  span('presence', '32', '31', 'deliver notification', [32, 0.1], {
    kind: 'producer',
    attributes: { 'keytrail.notification.kind': 'KEY_OFFERED' },
  }),
  span('device', '33', '32', 'answer offer', [33, 30]),
  ...call(['b0', 'b1', '33'], 'device', 'session', `${session}/FulfillKeyRequest`, [35, 10]),
];
