import type { AttachRequest } from '@keytrail/contracts';
import { refuse } from '@keytrail/rpc/refusal';
import { expect, test } from 'vitest';
import { cursors } from '../src/cursors.ts';
import { type ClientEvents, type KeytrailClient, memoryKeyStore } from '../src/index.ts';
import { FakeClock } from './fake-clock.ts';
import { clientOf, firstDevice } from './people.ts';
import { World } from './world.ts';

/** Tells of the waits in the background too: those before attaching again are among them. */
class ToldClock extends FakeClock {
  readonly allWaits: number[] = [];

  override after(ms: number, run: () => void, options?: { background?: boolean }): () => void {
    this.allWaits.push(ms);
    return super.after(ms, run, options);
  }
}

function state(client: KeytrailClient, wanted: ClientEvents['state']['state']): Promise<ClientEvents['state']> {
  return new Promise((resolve) => {
    const off = client.on('state', (event) => {
      if (event.state !== wanted) return;
      off();
      resolve(event);
    });
  });
}

/** A device whose attaches are refused; how long it waits after each of them. */
async function waitsOf(name: string, times: number, refusal: () => Error): Promise<number[]> {
  const [world, clock] = [new World(), new ToldClock()];
  const device = await firstDevice(world, name, 'laptop', { clock, upkeep: false });
  world.before.set('attach', () => {
    throw refusal();
  });
  const waits: number[] = [];
  const attaching = device.attach().catch(() => {});
  for (let time = 0; time < times; time += 1) {
    await state(device, 'waiting');
    // The wait begins right after the event was told.
    waits.push(clock.allWaits.at(-1) as number);
    clock.advance(60_000);
  }
  await device.close();
  await attaching;
  return waits;
}

test('devices that lost their streams together do not come back together, and wait longer each time', async () => {
  const devices = await Promise.all(
    Array.from({ length: 20 }, (_, n) => waitsOf(`user-${n}`, 9, () => refuse('SHUTTING_DOWN', 'this process stops'))),
  );
  for (let loss = 0; loss < 9; loss += 1) {
    const backoffMs = Math.min(100 * 2 ** loss, 10_000);
    const waits = devices.map((each) => each[loss] as number);
    for (const wait of waits) {
      expect(wait).toBeGreaterThanOrEqual(backoffMs / 2);
      expect(wait).toBeLessThan(backoffMs * 2);
    }
    expect(new Set(waits).size).toBeGreaterThan(5);
  }
});

test('a device that is told when to attach again does not come sooner', async () => {
  const told = () =>
    refuse('LIMIT_EXCEEDED', 'many attach now', { metadata: { limit: '1', scope: 'attaches' }, retryAfterMs: 8_000 });
  const devices = await Promise.all(Array.from({ length: 10 }, (_, n) => waitsOf(`user-${n}`, 2, told)));
  for (const wait of devices.flat()) {
    expect(wait).toBeGreaterThan(8_000);
    expect(wait).toBeLessThanOrEqual(12_000);
  }
  expect(new Set(devices.flat()).size).toBeGreaterThan(5);
});

test('attach hands in where the device stands, so that the greeting can tell what it missed', async () => {
  const world = new World();
  const keyStore = memoryKeyStore();
  const requests: AttachRequest[] = [];
  world.before.set('attach', (request: AttachRequest) => {
    requests.push(request);
  });
  const alice = clientOf(world, 'alice', 'laptop', { keyStore });
  await alice.register();
  await alice.attach();
  await alice.detach();
  await keyStore.saveCursor(cursors.conversations, 'seen conversations');
  await keyStore.saveCursor(cursors.keys, 'seen keys');
  await alice.attach();
  await alice.close();
  expect(requests[0]).toMatchObject({ attachCounter: 1n });
  expect(requests.at(-1)).toMatchObject({
    attachCounter: 2n,
    conversationCursor: 'seen conversations',
    sessionCursor: 'seen keys',
  });
});

test('a gateway that answers no heartbeat for three intervals is left, also when each silence takes its time', async () => {
  const [world, clock] = [new World(), new FakeClock()];
  const alice = await firstDevice(world, 'alice', 'laptop', { clock, upkeep: false });
  await alice.attach();
  const waiting = state(alice, 'waiting');
  const asked = () => world.count('heartbeat');
  world.before.set('heartbeat', () => {
    clock.advance(10_000);
    throw refuse('PEER_UNAVAILABLE', 'no answer', { metadata: { peer: 'presence' } });
  });
  clock.advance(10_000);
  let left = false;
  void waiting.then(() => {
    left = true;
  });
  // 10 s to the first one, that takes 10 s, a pause of 1 s, and the second one: then it is 31 s.
  while (!left) {
    await new Promise((resolve) => setImmediate(resolve));
    if (asked() === 1) clock.advance(1_000);
  }
  expect(asked()).toBe(2);
  expect(await waiting).toMatchObject({ error: { reason: 'PEER_UNAVAILABLE' } });
  await alice.close();
});

test('a gateway that does not greet is left for the next one', async () => {
  const [world, clock] = [new World(), new FakeClock()];
  const alice = await firstDevice(world, 'alice', 'laptop', { clock, upkeep: false });
  const called = Promise.withResolvers<void>();
  world.before.set('attach', async () => {
    world.before.delete('attach');
    called.resolve();
    await new Promise(() => {});
  });
  const waiting = state(alice, 'waiting');
  const attaching = alice.attach();
  await called.promise;
  clock.advance(5_000);
  expect(await waiting).toMatchObject({ error: { code: 4 } });
  clock.advance(60_000);
  await attaching;
  expect(world.attachCounters).toEqual([1n, 2n]);
  await alice.close();
});

test('an attach after which nothing waits and nothing has changed costs no further call', async () => {
  const world = new World();
  const keyStore = memoryKeyStore();
  const options = { keyStore, recoverHistory: true, autoRotate: true } as const;
  const first = await firstDevice(world, 'alice', 'laptop', options);
  first.onMessage(() => {});
  await first.createConversation({ kind: 'group', members: [] });
  await first.attach();
  await first.receive();
  await first.close();

  world.nothingWaits = true;
  const back = async (upkeep?: false) => {
    const client = clientOf(world, 'alice', 'laptop', { ...options, ...(upkeep === false && { upkeep }) });
    client.onMessage(() => {});
    world.counts.clear();
    await client.attach();
    // Whatever it does by itself has begun by then.
    for (let turn = 0; turn < 50; turn += 1) await new Promise((resolve) => setImmediate(resolve));
    await client.close();
    return [...world.counts.keys()];
  };
  expect(await back(false)).toEqual([]);
  // Once in a process a device looks whether its prekeys are those that the service has.
  expect((await back()).sort()).toEqual(['checkKeys', 'getPrekeyStatus']);
});
