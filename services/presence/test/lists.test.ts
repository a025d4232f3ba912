import { randomUUID } from 'node:crypto';
import { createServer, type Server, Socket } from 'node:net';
import { connectEvents, type EventBus } from '@keytrail/events';
import { ensureNats, ensureRedis, findFreePort, type ServerHandle } from '@keytrail/local';
import { startTelemetry } from '@keytrail/telemetry';
import { Cluster, Redis } from 'ioredis';
import { afterAll, afterEach, beforeAll, describe, expect, test, vi } from 'vitest';
import { readConfig } from '../src/config.ts';
import { Attachment } from '../src/domain/attachment.ts';
import { keyInEachRange, rangeCount, rangeOf, slotOf } from '../src/domain/slot-ranges.ts';
import { Gateway } from '../src/gateway.ts';
import { keyOfEntries, LeaseStore } from '../src/store/lease-store.ts';

const closing: (() => unknown)[] = [];
afterEach(async () => {
  for (const close of closing.splice(0).reverse()) await close();
});

const users = Array.from({ length: 1_000 }, (_, n) => `user-${n}`);
const telemetry = startTelemetry({
  service: 'presence',
  config: eventConfig('nats://127.0.0.1:1', 'redis://127.0.0.1:1'),
});
const { log } = telemetry;
afterAll(() => telemetry.shutdown());

function store(url: string, clusterUrls: readonly string[] = []): LeaseStore {
  const leases = new LeaseStore({ url, clusterUrls, deviceTtlMs: 60_000, onError: () => {} });
  closing.push(() => leases.close());
  return leases;
}

function attachmentOf(gateway: Gateway, userId: string): Attachment {
  return new Attachment({
    userId,
    deviceId: 'phone',
    connectionId: gateway.newConnection(),
    counter: 1n,
    attachedAt: new Date(),
    tokenExpiresAtMs: Number.POSITIVE_INFINITY,
    nowMs: performance.now(),
    maxQueued: 3,
  });
}

async function attachAll(gateway: Gateway, userIds: readonly string[]): Promise<void> {
  await Promise.all(
    userIds.map(async (userId) => {
      const attachment = attachmentOf(gateway, userId);
      gateway.attachments.put(attachment);
      expect(await gateway.assert(attachment)).toBe(true);
    }),
  );
}

/** Stands between a client and Redis, and can hold the answers back, or cut the connections. */
async function startHoldingProxy(to: ServerHandle) {
  let held = false;
  let away = false;
  const waiting: (() => void)[] = [];
  const open = new Set<Socket>();
  const server: Server = createServer((client) => {
    if (away) {
      client.destroy();
      return;
    }
    open.add(client);
    client.on('close', () => open.delete(client));
    const redis = new Socket().connect(to.port, '127.0.0.1');
    client.on('data', (bytes) => redis.write(bytes));
    redis.on('data', (bytes) => {
      const pass = () => client.write(bytes);
      if (held) waiting.push(pass);
      else pass();
    });
    for (const [one, other] of [
      [client, redis],
      [redis, client],
    ] as const) {
      one.on('error', () => {});
      one.on('close', () => other.destroy());
    }
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  closing.push(() => server.close());
  const { port } = server.address() as { port: number };
  const url = new URL(to.url);
  url.port = String(port);
  return {
    url: url.href,
    hold() {
      held = true;
    },
    release() {
      held = false;
      for (const pass of waiting.splice(0)) pass();
    },
    cut() {
      away = true;
      for (const client of open) client.destroy();
    },
    mend() {
      away = false;
    },
  };
}

async function calls(admin: Redis, command: string): Promise<number> {
  return Number(new RegExp(`cmdstat_${command}:calls=(\\d+)`).exec(await admin.info('commandstats'))?.[1] ?? 0);
}

describe('on one server', () => {
  let redis: ServerHandle;
  let nats: ServerHandle;
  let bus: EventBus;
  beforeAll(async () => {
    [redis, nats] = await Promise.all([ensureRedis({ own: true }), ensureNats({ own: true })]);
    bus = await connectEvents({ config: eventConfig(nats.url, redis.url), log, name: 'test' });
  });
  afterAll(async () => {
    await bus?.close();
    await Promise.all([redis?.stop(), nats?.stop()]);
  });

  test('who of 1,000 users is online is asked in one round trip: everything is sent before anything is answered', async () => {
    const proxy = await startHoldingProxy(redis);
    const admin = new Redis(redis.url);
    closing.push(() => admin.disconnect());
    const gateway = new Gateway({ leases: store(redis.url), bus, leaseMs: 60_000, log });
    await gateway.open();
    closing.push(() => gateway.close());
    const online = users.filter((_, n) => n % 3 === 0);
    await attachAll(gateway, online);
    const asking = store(proxy.url);
    await asking.ping();
    await admin.config('RESETSTAT');
    proxy.hold();
    const listing = asking.listOnline(users);
    await vi.waitFor(async () => expect(await calls(admin, 'hgetall')).toBe(users.length), {
      interval: 5,
      timeout: 10_000,
    });
    const asked = await calls(admin, 'zrangebyscore');
    proxy.release();
    expect((await listing).map(({ userId }) => userId)).toEqual(online);
    // And nothing was asked once the answers were there.
    expect([await calls(admin, 'hgetall'), asked, await calls(admin, 'zrangebyscore')]).toEqual([1_000, 1, 1]);
  });

  test('an attachment that ends takes its own entry away, and leaves that of a newer one', async () => {
    const leases = store(redis.url);
    await leases.openGateway('both-1', 60_000);
    const older = { counter: 1n, gatewayId: 'both-1', connectionId: randomUUID(), attachedAtMs: 1 };
    const newer = { ...older, counter: 2n, connectionId: randomUUID() };
    await leases.attach('erin', 'phone', older);
    await leases.attach('erin', 'phone', newer);
    await leases.detach('erin', 'phone', older);
    expect(await leases.find('erin', 'phone')).toEqual(newer);
    await leases.detach('erin', 'phone', newer);
    expect(await leases.find('erin', 'phone')).toBeUndefined();
  });

  test('a gateway that has not renewed its lease counts no more, by the clock of Redis, though nobody cleared it away', async () => {
    const leases = store(redis.url);
    const admin = new Redis(redis.url);
    closing.push(() => admin.disconnect());
    await leases.openGateway('gone-1', 60_000);
    await leases.attach('dora', 'phone', {
      counter: 1n,
      gatewayId: 'gone-1',
      connectionId: randomUUID(),
      attachedAtMs: 1,
    });
    expect(await leases.listOnline(['dora'])).toHaveLength(1);
    const [seconds, micros] = await admin.time();
    await admin.zadd('keytrail:gateways', Number(seconds) * 1000 + Math.floor(Number(micros) / 1000), 'gone-1');
    expect(await leases.listOnline(['dora'])).toEqual([]);
    // What has ended is not renewed either: the streams must be asserted under a new id.
    expect(await leases.renewGateway('gone-1', 60_000)).toBe(false);
  });

  test('what Redis lost in part is noticed at the next renewal, and asserted again', async () => {
    const admin = new Redis(redis.url);
    closing.push(() => admin.disconnect());
    const leases = store(redis.url);
    const gateway = new Gateway({ leases, bus, leaseMs: 60_000, log });
    await gateway.open();
    closing.push(() => gateway.close());
    const some = users.slice(0, 300);
    await attachAll(gateway, some);
    expect(await gateway.renew()).toBe(false);
    const held = gateway.id;

    // A range of slots: its canary goes with it.
    const lost = some.filter((userId) => rangeOf(keyOfEntries(userId)) === 5);
    expect(lost.length).toBeGreaterThan(0);
    await admin.del(keyInEachRange('keytrail:canary:')[5] as string, ...lost.map(keyOfEntries));
    expect(await leases.listOnline(some)).toHaveLength(some.length - lost.length);
    expect(await gateway.renew()).toBe(true);
    await admin.config('RESETSTAT');
    await gateway.heal();
    expect(await leases.listOnline(some)).toHaveLength(some.length);
    // Those of the range and its neighbours alone, and the lease is the same.
    const near = some.filter((userId) => [4, 5, 6].includes(rangeOf(keyOfEntries(userId))));
    expect(await calls(admin, 'hset')).toBe(near.length);
    expect(gateway.id).toBe(held);
    expect(await gateway.renew()).toBe(false);

    // All entries, and no canary.
    await admin.del(...some.map(keyOfEntries));
    expect(await gateway.renew()).toBe(true);
    await gateway.heal();
    expect(await leases.listOnline(some)).toHaveLength(some.length);
  });

  test('a device that leaves while its entry is being written again leaves no entry behind', async () => {
    const proxy = await startHoldingProxy(redis);
    const admin = new Redis(redis.url);
    closing.push(() => admin.disconnect());
    const gateway = new Gateway({ leases: store(proxy.url), bus, leaseMs: 60_000, log });
    await gateway.open();
    closing.push(() => gateway.close());
    await attachAll(gateway, ['leaver', 'stayer']);
    const leaver = gateway.attachments.of('leaver', 'phone') as Attachment;
    await admin.zrem('keytrail:gateways', gateway.id);
    expect(await gateway.renew()).toBe(true);
    // The entries of the lost lease are in the way: each is written at a second try.
    await admin.config('RESETSTAT');
    proxy.hold();
    const healing = gateway.heal();
    await vi.waitFor(async () => expect(await calls(admin, 'hget')).toBe(2), { interval: 5, timeout: 10_000 });
    const released = gateway.release(leaver);
    await vi.waitFor(async () => expect(await calls(admin, 'hget')).toBe(3), { interval: 5, timeout: 10_000 });
    proxy.release();
    await Promise.all([healing, released]);
    expect((await store(redis.url).listOnline(['leaver', 'stayer'])).map(({ userId }) => userId)).toEqual(['stayer']);
  });

  test('a device that left while Redis was away for less than a lease is no ghost once Redis is back', async () => {
    const proxy = await startHoldingProxy(redis);
    const gateway = new Gateway({ leases: store(proxy.url), bus, leaseMs: 60_000, log });
    await gateway.open();
    closing.push(() => gateway.close());
    await attachAll(gateway, ['gone', 'here']);
    proxy.cut();
    await expect(gateway.release(gateway.attachments.of('gone', 'phone') as Attachment)).rejects.toThrow();
    proxy.mend();
    const held = gateway.id;
    const direct = store(redis.url);
    expect(await direct.listOnline(['gone', 'here'])).toHaveLength(2);
    expect(await gateway.renew()).toBe(true);
    await gateway.heal();
    expect((await direct.listOnline(['gone', 'here'])).map(({ userId }) => userId)).toEqual(['here']);
    expect(gateway.id).toBe(held);
    expect(await gateway.renew()).toBe(false);
  });

  test('lists, leases and entries go on when Redis forgets its scripts', async () => {
    const admin = new Redis(redis.url);
    closing.push(() => admin.disconnect());
    const leases = store(redis.url);
    const gateway = new Gateway({ leases, bus, leaseMs: 60_000, log });
    await gateway.open();
    closing.push(() => gateway.close());
    await attachAll(gateway, ['eve']);
    expect(await leases.listOnline(['eve'])).toHaveLength(1);
    await admin.script('FLUSH');
    expect(await leases.listOnline(['eve'])).toHaveLength(1);
    await admin.script('FLUSH');
    expect(await gateway.renew()).toBe(false);
    await attachAll(gateway, ['finn']);
    expect(await leases.listOnline(['eve', 'finn'])).toHaveLength(2);
  });

  test('a gateway whose devices are healed by another gateway notices its own losses still', async () => {
    const admin = new Redis(redis.url);
    closing.push(() => admin.disconnect());
    const leases = store(redis.url);
    const gateways = [1, 2].map(() => new Gateway({ leases, bus, leaseMs: 60_000, log }));
    for (const [n, gateway] of gateways.entries()) {
      await gateway.open();
      closing.push(() => gateway.close());
      await attachAll(gateway, users.slice(n * 10, n * 10 + 10));
    }
    await admin.flushall();
    for (const gateway of gateways) {
      expect(await gateway.renew()).toBe(true);
      await gateway.heal();
    }
    expect(await leases.listOnline(users)).toHaveLength(20);
  });
});

describe('on a cluster of three nodes', () => {
  let nodes: ServerHandle[];
  let nats: ServerHandle;
  let bus: EventBus;
  let admins: Redis[];
  let urls: string[];
  beforeAll(async () => {
    [nats, ...nodes] = await Promise.all([
      ensureNats({ own: true }),
      ...[1, 2, 3].map(async () =>
        ensureRedis({
          own: true,
          settings: { requirepass: '', 'cluster-enabled': 'yes', 'cluster-port': String(await findFreePort()) },
        }),
      ),
    ]);
    urls = nodes.map(({ port }) => `redis://127.0.0.1:${port}`);
    admins = urls.map((url) => new Redis(url));
    await joinCluster(admins, nodes);
    bus = await connectEvents({ config: eventConfig(nats.url, nodes[0]?.url ?? ''), log, name: 'test' });
  });
  afterAll(async () => {
    await bus?.close();
    for (const admin of admins ?? []) admin.disconnect();
    await Promise.all([nats, ...(nodes ?? [])].map((server) => server?.stop()));
  });

  test('lists are one pipeline for each node, and a node that lost everything is healed without the others', async () => {
    const leases = store('redis://127.0.0.1:1', urls.slice(0, 1));
    const gateway = new Gateway({ leases, bus, leaseMs: 60_000, log });
    await gateway.open();
    closing.push(() => gateway.close());
    const online = users.slice(0, 400);
    await attachAll(gateway, online);
    const pipelines = vi.spyOn(Cluster.prototype, 'pipeline');
    closing.push(() => pipelines.mockRestore());
    expect((await leases.listOnline(users)).map(({ userId }) => userId)).toEqual(online);
    expect(pipelines).toHaveBeenCalledTimes(3);

    const scanned: string[] = [];
    for await (const page of leases.scanEntries()) scanned.push(...page.map(({ userId }) => userId));
    expect(scanned.sort()).toEqual([...online].sort());

    // The node that has the users but not the leases.
    const leaseNode = Math.floor((slotOf('keytrail:gateways') * 3) / 16_384);
    const emptied = (leaseNode + 1) % 3;
    const id = gateway.id;
    const lost = online.filter((userId) => Math.floor((slotOf(keyOfEntries(userId)) * 3) / 16_384) === emptied);
    await admins[emptied]?.flushall();
    expect(await leases.listOnline(users)).toHaveLength(online.length - lost.length);
    expect(await gateway.renew()).toBe(true);
    await gateway.heal();
    expect(await leases.listOnline(users)).toHaveLength(online.length);
    expect(gateway.id).toBe(id);

    // And the node of the leases.
    await admins[leaseNode]?.flushall();
    expect(await leases.listOnline(users)).toEqual([]);
    expect(await gateway.renew()).toBe(true);
    await gateway.heal();
    expect(await leases.listOnline(users)).toHaveLength(online.length);
    expect(gateway.id).not.toBe(id);
  });

  test('lists go on when slots have moved to another node', async () => {
    const leases = store('redis://127.0.0.1:1', urls);
    const gateway = new Gateway({ leases, bus, leaseMs: 60_000, log });
    await gateway.open();
    closing.push(() => gateway.close());
    const [moved, stayed] = ['mover', 'stayer'];
    await attachAll(gateway, [moved, stayed]);
    const slot = slotOf(keyOfEntries(moved));
    const from = Math.floor((slot * 3) / 16_384);
    await moveSlot(admins, slot, from, (from + 1) % 3, keyOfEntries(moved), nodes);
    expect((await leases.listOnline([moved, stayed])).map(({ userId }) => userId)).toEqual([moved, stayed]);
  });
});

test('slots are those of Redis, and each range of them has its canary', () => {
  // CRC-16/XMODEM of 123456789 is 0x31c3.
  expect(slotOf('123456789')).toBe(0x31c3 % 16_384);
  expect(slotOf('keytrail:devices:{alice}')).toBe(slotOf('alice'));
  expect(keyInEachRange('x:').map(rangeOf)).toEqual(Array.from({ length: rangeCount }, (_, range) => range));
});

function eventConfig(natsUrl: string, redisUrl: string) {
  return readConfig({
    KEYTRAIL_ENVIRONMENT: 'development',
    KEYTRAIL_REDIS_URL: redisUrl,
    KEYTRAIL_NATS_URL: natsUrl,
    KEYTRAIL_JWKS_URL: 'http://127.0.0.1:1/',
    KEYTRAIL_TOKEN_ISSUER: 'nobody',
    KEYTRAIL_TOKEN_AUDIENCE: 'nobody',
    KEYTRAIL_SERVICE_CREDENTIAL: 'a-development-credential-of-32-characters',
    KEYTRAIL_PEER_CONVERSATION: '127.0.0.1:1',
    KEYTRAIL_PEER_IDENTITY_KEYS: '127.0.0.1:1',
    KEYTRAIL_PEER_SESSION: '127.0.0.1:1',
    KEYTRAIL_LOG_LEVEL: 'silent',
  });
}

async function joinCluster(admins: readonly Redis[], nodes: readonly ServerHandle[]): Promise<void> {
  for (const [n, admin] of admins.entries()) {
    const [from, to] = [n, n + 1].map((third) => Math.ceil((third * 16_384) / 3)) as [number, number];
    await admin.call('CLUSTER', 'ADDSLOTSRANGE', String(from), String(to - 1));
    await admin.call('CLUSTER', 'SET-CONFIG-EPOCH', String(n + 1));
  }
  const [first, ...others] = admins;
  for (const [n] of others.entries()) {
    const busPort = (await others[n]?.config('GET', 'cluster-port')) as string[];
    await first?.call('CLUSTER', 'MEET', '127.0.0.1', String(nodes[n + 1]?.port), String(busPort[1]));
  }
  for (const admin of admins)
    await vi.waitFor(
      async () => expect(await admin.call('CLUSTER', 'INFO')).toMatch(/cluster_state:ok[\s\S]*known_nodes:3/),
      {
        timeout: 30_000,
      },
    );
}

async function moveSlot(
  admins: readonly Redis[],
  slot: number,
  from: number,
  to: number,
  key: string,
  nodes: readonly ServerHandle[],
): Promise<void> {
  const ids = await Promise.all(admins.map(async (admin) => String(await admin.call('CLUSTER', 'MYID'))));
  const cluster = (node: number, ...words: string[]) => admins[node]?.call('CLUSTER', ...words);
  await cluster(to, 'SETSLOT', String(slot), 'IMPORTING', ids[from] as string);
  await cluster(from, 'SETSLOT', String(slot), 'MIGRATING', ids[to] as string);
  await admins[from]?.call('MIGRATE', '127.0.0.1', String(nodes[to]?.port), key, '0', '5000');
  for (const node of [to, from, 3 - to - from]) await cluster(node, 'SETSLOT', String(slot), 'NODE', ids[to] as string);
}
