import { Code, ConnectError } from '@connectrpc/connect';
import { type Message, NotificationKind } from '@keytrail/contracts';
import { refuse } from '@keytrail/rpc/refusal';
import { expect, test } from 'vitest';
import { type DeliveredMessage, type KeyStore, type KeytrailClient, memoryKeyStore } from '../src/index.ts';
import { FakeClock } from './fake-clock.ts';
import { type FaultyTransports, faulty } from './faulty-transports.ts';
import { approvedDevice, clientOf, firstDevice, next } from './people.ts';
import { World } from './world.ts';

interface Scene {
  readonly world: World;
  readonly alice: KeytrailClient;
  readonly bob: KeytrailClient;
  readonly keyStore: KeyStore;
  readonly transports: FaultyTransports;
  readonly conversationId: string;
}

const once = { retry: { retries: 0 } };

/** Alice and Bob have a conversation; nobody is told of messages unless the test says so. */
async function bobWithConversation(): Promise<Scene> {
  const world = new World();
  const keyStore = memoryKeyStore();
  const transports = faulty(world.transports('bob', 'phone'));
  const alice = await firstDevice(world, 'alice');
  const bob = await firstDevice(world, 'bob', 'phone', { keyStore, transports, ...once });
  const { conversationId } = await alice.createConversation({ kind: 'group', members: ['bob'] });
  return { world, alice, bob, keyStore, transports, conversationId };
}

function restarted({ world, keyStore, transports }: Scene): KeytrailClient {
  return clientOf(world, 'bob', 'phone', { keyStore, transports, ...once });
}

function hint({ world, conversationId }: Scene): void {
  world.streams.get('bob phone')?.push({ kind: NotificationKind.MESSAGE_ADDED, conversationId });
}

/** What was given to the application, and a promise of the next one. */
function collector(client: KeytrailClient, handle: (message: DeliveredMessage) => void | Promise<void> = () => {}) {
  const given: string[] = [];
  let arrived = Promise.withResolvers<void>();
  const off = client.onMessage(async (message) => {
    await handle(message);
    given.push('error' in message ? message.error.name : `${message.again ? 'again ' : ''}${message.text}`);
    arrived.resolve();
    arrived = Promise.withResolvers<void>();
  });
  const until = async (count: number) => {
    while (given.length < count) await arrived.promise;
    return given;
  };
  return { given, until, off };
}

test('messages are given once and in order, however often they are told of', async () => {
  const scene = await bobWithConversation();
  const { alice, bob, conversationId } = scene;
  const { given, until } = collector(bob);
  await bob.attach();
  for (const text of ['one', 'two', 'three']) {
    await alice.send(conversationId, text);
    for (let i = 0; i < 3; i += 1) hint(scene);
  }
  await until(3);
  await bob.receive();
  expect(given).toEqual(['one', 'two', 'three']);
  await bob.close();
});

test('messages whose hints were lost come with the next hint', async () => {
  const scene = await bobWithConversation();
  const { alice, bob, conversationId } = scene;
  const { until } = collector(bob);
  await bob.attach();
  await bob.receive();
  await alice.send(conversationId, 'untold');
  await alice.send(conversationId, 'untold, too');
  await alice.send(conversationId, 'told');
  hint(scene);
  expect(await until(3)).toEqual(['untold', 'untold, too', 'told']);
  await bob.close();
});

test('a hint makes the device look for those that were lost of other conversations', async () => {
  const world = new World();
  const clock = new FakeClock();
  const alice = await firstDevice(world, 'alice');
  const bob = await firstDevice(world, 'bob', 'phone', { clock });
  const told = await alice.createConversation({ kind: 'group', members: ['bob'] });
  const untold = await alice.createConversation({ kind: 'group', members: ['bob'] });
  const { until } = collector(bob);
  await bob.attach();
  await bob.receive();
  await alice.send(untold.conversationId, 'untold');
  await alice.send(told.conversationId, 'told');
  hint({ world, conversationId: told.conversationId } as Scene);
  expect(await until(1)).toEqual(['told']);
  clock.advance(60_000);
  expect(await until(2)).toEqual(['told', 'untold']);
  await bob.close();
});

test('what came while the device was away is given when it attaches, and only that', async () => {
  const scene = await bobWithConversation();
  const { alice, bob, conversationId } = scene;
  const first = collector(bob);
  await bob.attach();
  await alice.send(conversationId, 'before');
  hint(scene);
  await first.until(1);
  await bob.close();
  await alice.send(conversationId, 'meanwhile');

  const back = restarted(scene);
  const second = collector(back);
  await back.attach();
  expect(await second.until(1)).toEqual(['meanwhile']);
  await back.close();
});

test('a message whose handler did not come to its end before the process did is given again', async () => {
  const scene = await bobWithConversation();
  const { alice, bob, conversationId } = scene;
  const started = Promise.withResolvers<void>();
  bob.onMessage(async (message) => {
    if (!('text' in message) || message.text !== 'two') return;
    started.resolve();
    await new Promise(() => {});
  });
  for (const text of ['one', 'two', 'three']) await alice.send(conversationId, text);
  void bob.receive().catch(() => {});
  await started.promise;

  const back = restarted(scene);
  const { given } = collector(back);
  await back.receive();
  expect(given).toEqual(['two', 'three']);
  await back.close();
});

test('a handler that fails gets the same message again, and nothing behind it before it', async () => {
  const scene = await bobWithConversation();
  const { alice, bob, conversationId } = scene;
  let failures = 2;
  const { given } = collector(bob, (message) => {
    if (message.sequence === 2n && failures > 0) {
      failures -= 1;
      throw new Error('the disk is full');
    }
  });
  for (const text of ['one', 'two', 'three']) await alice.send(conversationId, text);
  await expect(bob.receive()).rejects.toThrow('the disk is full');
  await expect(bob.receive()).rejects.toThrow('the disk is full');
  expect(given).toEqual(['one']);
  await bob.receive();
  expect(given).toEqual(['one', 'two', 'three']);
  await bob.close();
});

test('a handler that fails is tried again without being asked', async () => {
  const scene = await bobWithConversation();
  const { alice, bob, conversationId } = scene;
  let failures = 1;
  const { until } = collector(bob, () => {
    failures -= 1;
    if (failures >= 0) throw new Error('not yet');
  });
  const fault = next(bob, 'fault');
  await bob.attach();
  await alice.send(conversationId, 'hello');
  hint(scene);
  expect(await fault).toMatchObject({ error: { message: 'not yet' } });
  expect(await until(1)).toEqual(['hello']);
  await bob.close();
});

test('a message is not given without its text because a service was away for a moment', async () => {
  const scene = await bobWithConversation();
  const { world, alice, bob, conversationId } = scene;
  const { given } = collector(bob);
  await alice.send(conversationId, 'hello');
  world.before.set('getInitialSession', () => {
    throw new ConnectError('not now', Code.Unavailable);
  });
  await expect(bob.receive()).rejects.toMatchObject({ code: Code.Unavailable });
  expect(given).toEqual([]);
  world.before.delete('getInitialSession');
  await bob.receive();
  expect(given).toEqual(['hello']);
  await bob.close();
});

test('more messages than a page has are given in order, each once', async () => {
  const scene = await bobWithConversation();
  const { alice, bob, conversationId } = scene;
  const { given } = collector(bob);
  const texts = Array.from({ length: 205 }, (_, i) => `message ${i}`);
  for (const text of texts) await alice.send(conversationId, text);
  await bob.receive();
  expect(given).toEqual(texts);
  await bob.close();
});

test('a message whose key is missing is given with its error, keeps none behind it waiting, and comes again when the key does', async () => {
  const world = new World();
  world.holdersOnline = false;
  const keyStore = memoryKeyStore();
  const alice = await firstDevice(world, 'alice');
  const { conversationId } = await alice.createConversation({ kind: 'group', members: [] });
  await alice.send(conversationId, 'before the phone');
  const phone = await approvedDevice(world, alice, 'phone', { keyStore });
  await alice.rotate(conversationId);
  await alice.send(conversationId, 'after');

  const first = collector(phone);
  await phone.receive();
  expect(first.given).toEqual(['KeyMissError', 'after']);
  expect((await keyStore.unread()).map(({ sequence }) => sequence)).toEqual([1n]);
  await phone.close();

  // Another process: what was not readable is not forgotten.
  const again = clientOf(world, 'alice', 'phone', { keyStore });
  const second = collector(again);
  await again.attach();
  const readable = next(again, 'messageReadable');
  await alice.attach();
  for (const request of world.keyRequests) world.offer(request);
  expect(await readable).toEqual({ conversationId, sequence: 1n });
  expect(second.given).toEqual(['again before the phone']);
  await again.receive();
  expect(second.given).toHaveLength(1);
  expect(await keyStore.unread()).toEqual([]);
  await Promise.all([alice.close(), again.close()]);
});

test('there is one handler at a time', async () => {
  const { bob } = await bobWithConversation();
  const { off } = collector(bob);
  expect(() => bob.onMessage(() => {})).toThrow('a handler already');
  off();
  bob.onMessage(() => {});
  await bob.close();
});

test('a message that the server repeats under another sequence is given once, also by the next process', async () => {
  const scene = await bobWithConversation();
  const { world, alice, bob, conversationId } = scene;
  const log = world.messages.get(conversationId) ?? [];
  const repeat = (message: Message | undefined) =>
    log.push({ ...(message as Message), sequence: BigInt(log.length + 1) });
  const { given } = collector(bob);
  await alice.send(conversationId, 'one');
  await bob.send(conversationId, 'of another sender with the same counter');
  repeat(log[0]);
  await alice.send(conversationId, 'two');
  const repeated = next(bob, 'messageRepeated');
  await bob.receive();
  expect(given).toEqual(['one', 'of another sender with the same counter', 'two']);
  expect(await repeated).toEqual({ conversationId, sequence: 3n, sender: { userId: 'alice', deviceId: 'laptop' } });
  await bob.close();

  repeat(log[3]);
  await alice.send(conversationId, 'three');
  const back = restarted(scene);
  const second = collector(back);
  await back.receive();
  expect(second.given).toEqual(['three']);
  await back.close();
});

test('large messages, of which a page has fewer than were asked for, are all given at once', async () => {
  const scene = await bobWithConversation();
  const { world, alice, bob, conversationId } = scene;
  const { given } = collector(bob);
  world.after.set('listMessages', (page: { messages: Message[]; more: boolean }) => {
    if (page.messages.splice(1).length > 0) page.more = true;
  });
  for (const text of ['one', 'two', 'three']) await alice.send(conversationId, text);
  await bob.receive();
  expect(given).toEqual(['one', 'two', 'three']);
  expect(await bob.messages(conversationId, { limit: 2 })).toMatchObject([{ text: 'one' }, { text: 'two' }]);
  await bob.close();
});

test('what was refused because a root key changed comes again when the key is accepted, and costs nothing until then', async () => {
  const scene = await bobWithConversation();
  const { world, alice, bob, conversationId } = scene;
  const { given, until } = collector(bob);
  await alice.send(conversationId, 'before');
  await bob.receive();
  const { rootKey } = await alice.changeRootKey();
  // Bob hears of the change, and does not accept it.
  await bob.createConversation({ kind: 'group', members: ['alice'] });
  await alice.send(conversationId, 'under the session that bob has');
  await alice.rotate(conversationId);
  await alice.send(conversationId, 'under one that he refuses');
  await bob.receive();
  expect(given).toEqual(['before', 'SessionRefusedError', 'SessionRefusedError']);
  await bob.receive();
  const listed = world.count('listMessages');
  await bob.receive();
  await alice.send(conversationId, 'one more');
  await bob.receive();
  expect(world.count('listMessages') - listed).toBe(1);
  await bob.acceptRootKey('alice', rootKey);
  await until(7);
  expect(given.slice(4)).toEqual([
    'again under the session that bob has',
    'again under one that he refuses',
    'again one more',
  ]);
  await bob.close();
});

test('a device that is revoked does not go on asking for messages', async () => {
  const scene = await bobWithConversation();
  const { world, bob, keyStore } = scene;
  await bob.close();
  const clock = new FakeClock();
  const back = clientOf(world, 'bob', 'phone', { keyStore, clock, ...once });
  world.before.set('listChanges', () => {
    throw refuse('DEVICE_REVOKED', 'revoked', { metadata: { device_id: 'phone' } });
  });
  collector(back);
  const revoked = next(back, 'revoked');
  await back.attach();
  await revoked;
  await expect(back.receive()).rejects.toMatchObject({ reason: 'DEVICE_REVOKED' });
  const asked = world.count('listChanges');
  clock.advance(3_600_000);
  await back.close();
  expect(world.count('listChanges')).toBe(asked);
});

test('nothing is left to happen when a client is closed', async () => {
  const scene = await bobWithConversation();
  const { world, alice, bob, keyStore, conversationId } = scene;
  await bob.close();
  const clock = new FakeClock();
  const back = clientOf(world, 'bob', 'phone', { keyStore, clock, ...once });
  back.onMessage(() => {
    throw new Error('not yet');
  });
  const fault = next(back, 'fault');
  await back.attach();
  await alice.send(conversationId, 'hello');
  hint(scene);
  await fault;
  expect(clock.pending).toBeGreaterThan(0);
  await back.close();
  expect(clock.pending).toBe(0);
});
