import { type Client, createClient, type Transport } from '@connectrpc/connect';
import { createServiceIdentity } from '@keytrail/auth';
import { PresenceOperatorService } from '@keytrail/contracts';
import { createGrpcTransport, readRefusal } from '@keytrail/rpc';
import { pseudonym } from '@keytrail/telemetry';
import { afterAll, afterEach, beforeAll, describe, expect, test, vi } from 'vitest';
import { type Fixture, startFixture } from './fixture.ts';

let fixture: Fixture;
const closing: (() => unknown)[] = [];
beforeAll(async () => {
  fixture = await startFixture();
}, 60_000);
afterEach(async () => {
  for (const close of closing.splice(0)) close();
  await fixture.endTest();
  await fixture.admin.flushall();
});
afterAll(() => fixture?.[Symbol.asyncDispose]());

type Operator = Client<typeof PresenceOperatorService>;

function viewOf(at: { readonly grpcPort: number }, authorization: string): Operator {
  const transport: Transport & { close(): void } = createGrpcTransport({
    target: `127.0.0.1:${at.grpcPort}`,
    authorization: () => authorization,
    retry: { retries: 0 },
  });
  closing.push(() => transport.close());
  return createClient(PresenceOperatorService, transport);
}

const operatorAt = async (at: { readonly grpcPort: number }) => viewOf(at, `Bearer ${await fixture.operatorToken()}`);

test('an operator sees who is attached, where and since when, all of them or those of some users', async () => {
  const [first, second] = [await fixture.gateway(), await fixture.gateway()];
  await (await fixture.device(first, 'alice', 'phone')).attach(1n);
  await (await fixture.device(second, 'alice', 'tablet')).attach(1n);
  await (await fixture.device(second, 'bob', 'phone')).attach(1n);
  const operator = await operatorAt(first);
  const { devices, more } = await operator.findAttached({});
  const named = (list: typeof devices) => list.map(({ device }) => `${device?.userId}/${device?.deviceId}`).sort();
  expect(named(devices)).toEqual(['alice/phone', 'alice/tablet', 'bob/phone']);
  expect(more).toBe(false);
  expect(new Set(devices.map(({ gatewayId }) => gatewayId)).size).toBe(2);
  for (const { device, online, attachedAt, connectionId, userPseudonym, devicePseudonym } of devices)
    expect({ online, attachedAt, connectionId, userPseudonym, devicePseudonym }).toEqual({
      online: true,
      attachedAt: expect.anything(),
      connectionId: expect.stringMatching(/^[0-9a-f-]{36}$/),
      userPseudonym: pseudonym(device?.userId ?? ''),
      devicePseudonym: pseudonym(device?.deviceId ?? ''),
    });
  expect(named((await operator.findAttached({ userIds: ['alice', 'nobody'] })).devices)).toEqual([
    'alice/phone',
    'alice/tablet',
  ]);
  const some = await operator.findAttached({ limit: 2 });
  expect([some.devices.length, some.more]).toEqual([2, true]);
});

test('an operator sees the leases, the entries of a gateway that is gone, and what the own gateway lost', async () => {
  const own = await fixture.gateway({ KEYTRAIL_GATEWAY_LEASE_MS: '60000', KEYTRAIL_GATEWAY_RENEW_MS: '3600000' });
  await (await fixture.device(own, 'alice', 'phone')).attach(1n);
  await (await fixture.device(own, 'bob', 'phone')).attach(1n);
  await fixture.admin.hset(
    'keytrail:devices:{carol}',
    'phone',
    '1|deadbeef0000-1|00000000-0000-4000-8000-000000000000|1',
  );
  const operator = await operatorAt(own);
  const before = await operator.describeGateways({});
  expect(before).toMatchObject({ storeReachable: true, entriesMore: false });
  const mine = before.gateways.find(({ isOwn }) => isOwn);
  expect(mine).toMatchObject({ alive: true, entries: 2n, streams: 2n, streamsWithoutEntry: 0n });
  expect(Number(mine?.leaseLeftMs)).toBeGreaterThan(0);
  expect(mine?.lastLossAt).toBeUndefined();
  expect(before.gateways.filter(({ isOwn }) => !isOwn)).toMatchObject([
    { gatewayId: 'deadbeef0000-1', alive: false, leaseLeftMs: 0n, entries: 1n },
  ]);
  const ghost = await operator.findAttached({ userIds: ['carol'] });
  expect(ghost.devices).toMatchObject([{ online: false, gatewayId: 'deadbeef0000-1' }]);

  await fixture.admin.del('keytrail:devices:{bob}');
  const lost = await operator.describeGateways({});
  expect(lost.gateways.find(({ isOwn }) => isOwn)).toMatchObject({ entries: 1n, streams: 2n, streamsWithoutEntry: 1n });
});

test('a loss that the gateway noticed is told with its time', async () => {
  const own = await fixture.gateway();
  const device = await fixture.device(own, 'alice', 'phone');
  await device.attach(1n);
  await fixture.admin.flushall();
  await fixture.untilOnline(device, ['alice'], ['alice/phone']);
  const operator = await operatorAt(own);
  const { gateways } = await operator.describeGateways({});
  expect(gateways).toMatchObject([{ isOwn: true, alive: true, streams: 1n, lastLossAt: expect.anything() }]);
});

describe('who may look', () => {
  test('is an operator or session; devices and other services are refused', async () => {
    const at = await fixture.gateway();
    const credential = (service: 'session' | 'conversation' | 'identity-keys') =>
      createServiceIdentity(
        { serviceCredential: fixture.environment.KEYTRAIL_SERVICE_CREDENTIAL ?? '' },
        service,
      ).header();
    expect((await viewOf(at, credential('session')).findAttached({})).devices).toEqual([]);
    const refused = [
      { as: credential('conversation'), caller: 'conversation' },
      { as: credential('identity-keys'), caller: 'identity-keys' },
      { as: `Bearer ${await fixture.token('alice', 'phone')}`, caller: 'device' },
    ];
    for (const { as, caller } of refused)
      for (const call of [() => viewOf(at, as).findAttached({}), () => viewOf(at, as).describeGateways({})]) {
        const refusal = await call().then(
          () => undefined,
          (error: unknown) => readRefusal(error),
        );
        expect(refusal).toMatchObject({ reason: 'CALLER_NOT_ALLOWED', metadata: { caller } });
      }
  });

  test('is told in the log by pseudonyms alone', async () => {
    const lines: string[] = [];
    const write = vi.spyOn(process.stdout, 'write').mockImplementation((text) => {
      lines.push(String(text));
      return true;
    });
    closing.push(() => write.mockRestore());
    const at = await fixture.gateway({ KEYTRAIL_LOG_LEVEL: 'info' });
    await (await operatorAt(at)).findAttached({ userIds: ['alice-of-the-canaries'] });
    const told = lines.filter((line) => line.includes('an operator looked at presence'));
    expect(told).toHaveLength(1);
    const line = JSON.parse(told[0] ?? '{}');
    expect(line).toMatchObject({
      operator: pseudonym('ops'),
      lookedAt: [pseudonym('alice-of-the-canaries')],
      userCount: 1,
    });
    expect(lines.join('')).not.toContain('alice-of-the-canaries');
  });
});

test('while Redis cannot be asked, the own gateway is told still, and attached devices are told as not to be had now', async () => {
  await using another = await startFixture();
  const own = await another.gateway();
  await (await another.device(own, 'alice', 'phone')).attach(1n);
  const operator = viewOf(own, `Bearer ${await another.operatorToken()}`);
  await another.redis.stop();
  const refusal = await operator.findAttached({}).then(
    () => undefined,
    (error: unknown) => readRefusal(error),
  );
  expect(refusal).toMatchObject({ reason: 'PEER_UNAVAILABLE', metadata: { peer: 'redis' } });
  const told = await operator.describeGateways({});
  expect(told).toMatchObject({ storeReachable: false, gateways: [{ isOwn: true, streams: 1n, alive: false }] });
  await another.endTest();
}, 60_000);
