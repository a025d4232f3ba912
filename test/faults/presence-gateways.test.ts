import { join } from 'node:path';
import { toBinary } from '@bufbuild/protobuf';
import { createClient as createRpcClient } from '@connectrpc/connect';
import { type ClientEvents, createClient, type KeytrailClient, memoryKeyStore } from '@keytrail/client';
import { createNodeTransports, nodePrimitives } from '@keytrail/client/node';
import { DeviceCertificateSchema, PresenceService } from '@keytrail/contracts';
import { certifyDevice, createRootKey } from '@keytrail/crypto';
import { checkoutFolder, findFreePort, type ProcessHandle, startProcess } from '@keytrail/local';
import { createGrpcTransport, readRefusal } from '@keytrail/rpc';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { type AttachedDevice, type Fixture, startFixture } from '../../services/presence/test/fixture.ts';

const leaseMs = 1_500;
// Three of them are what a loaded machine may stand still before a stream is lost for that.
const heartbeatMs = 1_500;

interface Replica {
  readonly grpcPort: number;
  readonly process: ProcessHandle;
}

/** A stream of a device whose heartbeats go to every replica in turn, as the SDK's do, and which never attaches again by itself. */
interface Held {
  readonly userId: string;
  readonly attached: AttachedDevice;
  /** Why it ended, once it has. */
  readonly ended: Promise<unknown>;
  /** Reads on until a notification comes. */
  notified(): Promise<void>;
  stop(): void;
}

let fixture: Fixture;
let replicas: Replica[];
let userNumber = 0;
const ending: (() => unknown)[] = [];

beforeAll(async () => {
  fixture = await startFixture();
  replicas = await Promise.all([0, 1, 2].map(startReplica));
});
beforeEach(async () => {
  for (const end of ending.splice(0)) await end();
});
afterAll(async () => {
  for (const end of ending.splice(0)) await end();
  await fixture?.endTest();
  await Promise.all((replicas ?? []).map(({ process }) => process.stop(2_000)));
  await fixture?.[Symbol.asyncDispose]();
});

async function startReplica(number: number): Promise<Replica> {
  const [grpcPort, webPort] = [await findFreePort(), await findFreePort()];
  const process = await startProcess({
    name: 'presence',
    args: ['services/presence/src/main.ts'],
    logFile: join(checkoutFolder, '.local', 'test-presence-faults', `presence-${number}.log`),
    env: {
      ...fixture.environment,
      KEYTRAIL_GRPC_PORT: String(grpcPort),
      KEYTRAIL_WEB_PORT: String(webPort),
      KEYTRAIL_GATEWAY_LEASE_MS: String(leaseMs),
      KEYTRAIL_GATEWAY_RENEW_MS: '300',
      KEYTRAIL_HEARTBEAT_INTERVAL_MS: String(heartbeatMs),
      // What heals within a lease is not healed by the slow sweep.
      KEYTRAIL_PRESENCE_SWEEP_MS: '3600000',
      KEYTRAIL_LOG_LEVEL: 'info',
    },
  });
  return { grpcPort, process };
}

function replica(number: number): Replica {
  return replicas[number] as Replica;
}

function someone(): string {
  userNumber += 1;
  return `user-${userNumber}`;
}

function later(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

/** Attached to one replica; the others carry its heartbeats too. */
async function hold(at: Replica, userId = someone(), counter = 1n): Promise<Held> {
  const attached = await (await fixture.device(at, userId, 'phone')).attach(counter);
  const carriers = await Promise.all(replicas.map((each) => fixture.device(each, userId, 'phone')));
  const notifications: (() => void)[] = [];
  let waiting = 0;
  const stopping = new AbortController();
  const ended = (async () => {
    try {
      for (;;) {
        const { done, value } = await attached.stream.next();
        if (done) return 'closed';
        if (value.message.case !== 'notification') continue;
        waiting += 1;
        notifications.shift()?.();
      }
    } catch (error) {
      return readRefusal(error).reason || String(error);
    }
  })();
  void (async () => {
    for (let beat = 0; !stopping.signal.aborted; beat += 1) {
      const carrier = carriers[beat % carriers.length];
      void carrier?.presence.heartbeat({ connectionId: attached.connectionId }, { timeoutMs: 2_000 }).catch(() => {});
      await later(heartbeatMs / 3);
    }
  })();
  const stop = () => {
    stopping.abort();
    attached.leave();
  };
  ending.push(stop);
  return {
    userId,
    attached,
    ended,
    stop,
    async notified() {
      const seen = waiting;
      const arrived = new Promise<void>((resolve) => notifications.push(resolve));
      await fixture.notify(userId, 'phone');
      await arrived;
      expect(waiting).toBeGreaterThan(seen);
    },
  };
}

/** The SDK of a device that is registered, with its states since it attached. */
async function sdkDevice(userId = someone()): Promise<{ userId: string; client: KeytrailClient; states: string[] }> {
  const keyStore = memoryKeyStore();
  const rootKey = createRootKey(nodePrimitives);
  const identityKey = nodePrimitives.x25519.keyPair();
  const signingKey = nodePrimitives.ed25519.keyPair();
  const keysOfDevice = {
    userId,
    deviceId: 'phone',
    identityKey: identityKey.publicKey,
    signingKey: signingKey.publicKey,
  };
  const certificate = certifyDevice(nodePrimitives, rootKey, keysOfDevice, new Date());
  await keyStore.saveDevice({
    userId,
    deviceId: 'phone',
    state: 'registered',
    identityKey,
    signingKey,
    rootKey,
    certificate: toBinary(DeviceCertificateSchema, certificate),
    signedPrekeyId: 1,
    lastResortPrekeyId: 1,
  });
  const nowhere = '127.0.0.1:1';
  const presence = `ipv4:${replicas.map(({ grpcPort }) => `127.0.0.1:${grpcPort}`).join(',')}`;
  const client = createClient({
    user: userId,
    device: 'phone',
    primitives: nodePrimitives,
    keyStore,
    upkeep: false,
    transports: createNodeTransports({
      targets: { identityKeys: nowhere, conversation: nowhere, session: nowhere, presence },
      token: () => fixture.token(userId, 'phone'),
    }),
  });
  const states: ClientEvents['state']['state'][] = [];
  client.on('state', ({ state }) => states.push(state));
  ending.push(() => client.close());
  await client.attach();
  states.length = 0;
  return { userId, client, states };
}

/** One that is attached to a certain replica: they take the replicas in turn. */
async function sdkAt(home: string | undefined): ReturnType<typeof sdkDevice> {
  const device = await sdkDevice();
  while ((await homeOf(device.userId)) !== home) {
    await device.client.detach();
    await device.client.attach();
  }
  device.states.length = 0;
  return device;
}

/** Whom a replica lists, of these users. */
async function listed(at: Replica, userIds: readonly string[]): Promise<string[]> {
  const transport = createGrpcTransport({
    target: `127.0.0.1:${at.grpcPort}`,
    authorization: () => `Keytrail-Service session ${fixture.environment.KEYTRAIL_SERVICE_CREDENTIAL}`,
  });
  try {
    const { devices } = await createRpcClient(PresenceService, transport).listOnline({ userIds: [...userIds] });
    return devices.map(({ device }) => device?.userId ?? '').sort();
  } finally {
    transport.close();
  }
}

/** Until each of these replicas lists exactly these; bounded by the timeout of the test. */
async function untilListed(at: readonly Replica[], asked: readonly string[], expected: readonly string[]) {
  for (const each of at)
    while (JSON.stringify(await listed(each, asked)) !== JSON.stringify([...expected].sort())) await later(20);
}

/** Where Redis says that a user's device is attached: the part of the gateway's id that stays over its leases. */
async function homeOf(userId: string): Promise<string | undefined> {
  return (await fixture.admin.hget(`keytrail:devices:{${userId}}`, 'phone'))?.split('|')[1]?.split('-')[0];
}

async function stillOpen(held: readonly Held[]): Promise<void> {
  const ended = await Promise.race([Promise.any(held.map((each) => each.ended)), later(0).then(() => 'open')]);
  expect(ended).toBe('open');
}

describe('a gateway', () => {
  test('that is killed: its devices are offline when its lease ends, and those that attach elsewhere are online there', async () => {
    const ghosts = [await hold(replica(0)), await hold(replica(0))] as const;
    const others = [await hold(replica(1)), await hold(replica(2))] as const;
    const killed = await homeOf(ghosts[0].userId);
    const sdks = await Promise.all([killed, killed, killed, await homeOf(others[0].userId)].map((home) => sdkAt(home)));
    const everybody = [...ghosts, ...others, ...sdks].map(({ userId }) => userId);
    ending.push(async () => {
      replicas[0] = await startReplica(0);
    });
    await replica(0).process.kill('SIGKILL');
    const [seconds] = await fixture.admin.time();
    const [lease] = (await fixture.admin.zrange('keytrail:gateways', 0, '-1')).filter((id) =>
      id.startsWith(`${killed}-`),
    );
    const endsAt = await fixture.admin.zscore('keytrail:gateways', lease ?? '');
    expect(Number(endsAt ?? 0)).toBeLessThanOrEqual((Number(seconds) + 1) * 1000 + leaseMs);
    const survivors = [...others, ...sdks].map(({ userId }) => userId);
    await untilListed([replica(1), replica(2)], everybody, survivors);
    for (const { userId } of sdks) expect(await homeOf(userId)).not.toBe(killed);
    await stillOpen(others);
    for (const each of others) await each.notified();
    // Whoever was nowhere near it noticed nothing.
    expect(sdks[3]?.states).toEqual([]);
  });

  test('that stood still for longer than its lease: those that went elsewhere are no ghosts, its other streams stay', async () => {
    const [stays, leaves] = await Promise.all([hold(replica(0)), hold(replica(0))]);
    const stopped = await homeOf(stays.userId);
    const sdks = await Promise.all([stopped, stopped, stopped].map((home) => sdkAt(home)));
    const everybody = [stays, leaves, ...sdks].map(({ userId }) => userId);
    const reachable = sdks.map(({ userId }) => userId);
    await replica(0).process.kill('SIGSTOP');
    // Those it held are offline, and the SDK's devices find another gateway by their heartbeats.
    await untilListed([replica(1), replica(2)], everybody, reachable);
    const elsewhere = await hold(replica(1), leaves.userId, 2n);
    await replica(0).process.kill('SIGCONT');

    expect(await leaves.ended).toBe('CONNECTION_SUPERSEDED');
    await untilListed(replicas, everybody, everybody);
    await stillOpen([stays, elsewhere]);
    for (const each of [stays, elsewhere]) await each.notified();
    expect(await homeOf(stays.userId)).toBe(stopped);
    expect(await homeOf(leaves.userId)).not.toBe(stopped);
    for (const { client } of sdks) expect(client.isAttached).toBe(true);
  });
});

describe('Redis', () => {
  async function everywhere(): Promise<{ held: Held[]; sdks: Awaited<ReturnType<typeof sdkDevice>>[]; all: string[] }> {
    const held = await Promise.all(replicas.map((each) => hold(each)));
    const sdks = await Promise.all([sdkDevice(), sdkDevice(), sdkDevice()]);
    const all = [...held, ...sdks].map(({ userId }) => userId);
    await untilListed(replicas, all, all);
    return { held, sdks, all };
  }

  async function rightAgain({ held, sdks, all }: Awaited<ReturnType<typeof everywhere>>): Promise<void> {
    await untilListed(replicas, all, all);
    // With the very streams that there were.
    await stillOpen(held);
    for (const each of held) await each.notified();
    for (const { states } of sdks) expect(states).toEqual([]);
  }

  test('that was emptied is right again, and no stream was lost for it', async () => {
    const devices = await everywhere();
    for (let round = 0; round < 3; round += 1) {
      await fixture.admin.flushall();
      await rightAgain(devices);
    }
  });

  test('that lost the entries of some users, or all, is right again, and no stream was lost for it', async () => {
    const devices = await everywhere();
    const [first = '', second = ''] = devices.all;
    await fixture.admin.del(`keytrail:devices:{${first}}`, `keytrail:devices:{${second}}`);
    await rightAgain(devices);
    await fixture.admin.del(...devices.all.map((userId) => `keytrail:devices:{${userId}}`));
    await rightAgain(devices);
    await fixture.admin.del('keytrail:gateways');
    await rightAgain(devices);
  });

  test('that restarts empty is right again, and no stream was lost for it', async () => {
    const devices = await everywhere();
    await fixture.redis.restart?.();
    await rightAgain(devices);
  });

  test('that is away for longer than a lease: heartbeats are taken, streams stay, and the picture is right when it is back', async () => {
    const devices = await everywhere();
    await fixture.redis.halt?.();
    const [one] = devices.held as [Held];
    const carrier = await fixture.device(replica(1), one.userId, 'phone');
    for (let beat = 0; beat < 8; beat += 1) {
      await carrier.presence.heartbeat({ connectionId: one.attached.connectionId });
      await later(leaseMs / 4);
    }
    await stillOpen(devices.held);
    await fixture.redis.restart?.();
    await rightAgain(devices);
  });

  test('that stood still for longer than a lease is right again, and no stream was lost for it', async () => {
    const devices = await everywhere();
    await fixture.redis.kill('SIGSTOP');
    await later(leaseMs * 1.5);
    await fixture.redis.kill('SIGCONT');
    await rightAgain(devices);
  });
});
