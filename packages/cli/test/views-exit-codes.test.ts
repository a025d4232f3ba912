import { randomUUID } from 'node:crypto';
import type { MessageInitShape } from '@bufbuild/protobuf';
import { timestampFromMs } from '@bufbuild/protobuf/wkt';
import {
  ConversationOperatorService,
  type DescribeConversationResponseSchema,
  type DescribeGatewaysResponseSchema,
  DiagnosticsService,
  type FindDevicesResponseSchema,
  type FindSessionsResponseSchema,
  type GetRestoreFenceResponseSchema,
  IdentityKeysOperatorService,
  PresenceOperatorService,
  SessionOperatorService,
} from '@keytrail/contracts';
import { unary } from '@keytrail/rpc';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { type Ran, type ScriptedFleet, scriptFleet } from './scripted-fleet.ts';

const allow = ['operator'] as const;
const id = randomUUID();
const at = timestampFromMs(0);

let fleet: ScriptedFleet;
beforeAll(() => {
  fleet = scriptFleet();
});
afterAll(() => fleet?.stop());

async function conversation(
  seen: MessageInitShape<typeof DescribeConversationResponseSchema>,
  ...args: string[]
): Promise<Ran> {
  const { method } = ConversationOperatorService;
  const target = await fleet.serve('conversation', ConversationOperatorService, [
    unary(method.describeConversation, { allow, handle: async () => ({ conversationId: id, ...seen }) }),
  ]);
  return fleet.keytrail(['--conversation', target, 'conversation', id, ...args]);
}

async function sessions(found: MessageInitShape<typeof FindSessionsResponseSchema>): Promise<Ran> {
  const target = await fleet.serve('session', SessionOperatorService, [
    unary(SessionOperatorService.method.findSessions, { allow, handle: async () => found }),
  ]);
  return fleet.keytrail(['--session', target, 'sessions', id]);
}

async function devices(found: MessageInitShape<typeof FindDevicesResponseSchema>): Promise<Ran> {
  const target = await fleet.serve('identity-keys', IdentityKeysOperatorService, [
    unary(IdentityKeysOperatorService.method.findDevices, { allow, handle: async () => found }),
  ]);
  return fleet.keytrail(['--identity-keys', target, 'devices', 'bob']);
}

async function online(found: MessageInitShape<typeof DescribeGatewaysResponseSchema>): Promise<Ran> {
  const { method } = PresenceOperatorService;
  const target = await fleet.serve('presence', PresenceOperatorService, [
    unary(method.describeGateways, { allow, handle: async () => found }),
    unary(method.findAttached, { allow, handle: async () => ({}) }),
  ]);
  return fleet.keytrail(['--presence', target, 'online', 'bob']);
}

async function fence(stands: MessageInitShape<typeof GetRestoreFenceResponseSchema>): Promise<Ran> {
  const target = await fleet.serve('session', DiagnosticsService, [
    unary(DiagnosticsService.method.getRestoreFence, { allow, handle: async () => stands }),
  ]);
  return fleet.keytrail(['--session', target, 'fence', 'status']);
}

async function replayed(handled: boolean): Promise<Ran> {
  const target = await fleet.serve('session', DiagnosticsService, [
    unary(DiagnosticsService.method.replayDeadLetter, {
      allow,
      handle: async () => ({ handled, problem: handled ? '' : 'no such session' }),
    }),
  ]);
  return fleet.keytrail(['--session', target, 'dead-letters', 'replay', '7', '--of', 'session']);
}

const whole = { type: 'GROUP', currentEpoch: 3n, currentSessionId: 's' };
const gateway = { gatewayId: 'one', alive: true, entries: 2n, isOwn: true, streams: 2n };
const restore = { because: 'it is on another server', noticedAt: at, handledAt: at };

it.each<[what: string, code: number, words: string, ran: () => Promise<Ran>]>([
  ['a conversation that is whole', 0, '', () => conversation(whole)],
  [
    'one whose epochs are gone',
    4,
    'it is not whole: epochs 2 are gone',
    () => conversation({ ...whole, epochGaps: [2n] }),
  ],
  ['one without the epoch that it is in', 4, 'it is not whole', () => conversation({ ...whole, currentEpoch: 0n })],
  [
    'one of which the session that was asked about is lost',
    4,
    'it is not whole',
    () => conversation({ ...whole, askedSession: { sessionId: 's', standing: 'lost' } }, '--session', 's'),
  ],
  [
    'one without the session that was asked about',
    1,
    'nothing is known of the session s',
    () => conversation(whole, '--session', 's'),
  ],
  ['one that never began', 0, 'nobody can see this conversation', () => conversation({})],
  ['sessions that are whole', 0, '1 session', () => sessions({ sessions: [{ sessionId: 's', epoch: 1n }] })],
  [
    'a session that is damaged, behind one that is not',
    4,
    '1 of them is not whole',
    () => sessions({ sessions: [{ sessionId: 's' }, { sessionId: 't', damages: ['EPHEMERAL_KEY_MISSING'] }] }),
  ],
  [
    'a device with its keys',
    0,
    '1 device of',
    () => devices({ deviceListVersion: 1n, rootKeyPresent: true, devices: [{}] }),
  ],
  [
    'a device that lacks keys',
    4,
    '1 of them lacks keys',
    () => devices({ deviceListVersion: 1n, rootKeyPresent: true, devices: [{}, { keysMissing: ['identity_key'] }] }),
  ],
  ['a user without a root key', 4, 'root key is missing', () => devices({ deviceListVersion: 1n, devices: [{}] })],
  ['a user of whom nothing is known', 1, 'nothing is known of', () => devices({ userId: 'bob' })],
  ['a user who was erased', 0, 'bob was erased at', () => devices({ userId: 'bob', erasedAt: at })],
  ['gateways that live', 0, 'bob is offline', () => online({ storeReachable: true, gateways: [gateway] })],
  [
    'a gateway that is gone, with entries',
    4,
    'entries of 1 gateway that is gone',
    () =>
      online({
        storeReachable: true,
        gateways: [gateway, { ...gateway, gatewayId: 'two', alive: false, isOwn: false }],
      }),
  ],
  [
    'a stream that nobody finds',
    4,
    '1 stream of the gateway that answered without an entry',
    () => online({ storeReachable: true, gateways: [{ ...gateway, streamsWithoutEntry: 1n }] }),
  ],
  ['a store that cannot be asked', 4, 'Redis could not be asked', () => online({ gateways: [gateway] })],
  ['a fence that is open', 0, '', () => fence({ open: true, state: 'open' })],
  ['a fence that is closed', 1, '', () => fence({ open: false, state: 'closed' })],
  ['a restore that nobody accepted', 1, '', () => fence({ open: true, restores: [restore] })],
  ['one that somebody did', 0, '', () => fence({ open: true, restores: [{ ...restore, acceptedAt: at }] })],
  ['a dead letter that is handled', 0, 'it is handled, and gone', () => replayed(true)],
  ['a dead letter that stays', 1, 'and stays: no such session', () => replayed(false)],
])('what is asked of %s ends with %s', async (_, code, words, ran) => {
  const { code: ended, err } = await ran();
  expect({ ended, err }).toEqual({ ended: code, err: expect.stringContaining(words) });
});
