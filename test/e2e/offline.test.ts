import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { DeliveredMessage, KeytrailClient } from '@keytrail/client';
import { type DiskKeyStore, KeyStoreInUseError, openDiskKeyStore } from '@keytrail/client/disk';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { someone, startWorld, type World } from './world.ts';

let world: World;
const folder = mkdtempSync(join(tmpdir(), 'keytrail-offline-'));

beforeAll(async () => {
  world = await startWorld({ name: 'test-offline' });
});
afterAll(async () => {
  await world?.[Symbol.asyncDispose]();
  rmSync(folder, { recursive: true, force: true });
});

const secret = { key: new Uint8Array(32).fill(7) };

function textOf(message: DeliveredMessage): string {
  return 'error' in message ? message.error.name : message.text;
}

/** Texts as they are given to the application, and when there are so many. */
function collector(client: KeytrailClient) {
  const given: string[] = [];
  let arrived = Promise.withResolvers<void>();
  client.onMessage((message) => {
    given.push(textOf(message));
    arrived.resolve();
    arrived = Promise.withResolvers<void>();
  });
  return async (count: number): Promise<string[]> => {
    while (given.length < count) await arrived.promise;
    return given;
  };
}

test('a device with a store on disk starts without any service, sends what it was given then once, and gets every message once', async () => {
  const [a, b] = [someone('alice'), someone('bob')];
  const path = join(folder, 'bob.keys');
  const open = (): Promise<DiskKeyStore> => openDiskKeyStore({ path, secret });
  const alice = await world.online(a, 'laptop');
  let keyStore = await open();
  const bob = await world.online(b, 'phone', { keyStore });
  const bobHas = collector(bob);
  const { conversationId } = await alice.createConversation({ kind: 'group', members: [b] });
  await alice.send(conversationId, 'one');
  await alice.send(conversationId, 'two');
  expect(await bobHas(2)).toEqual(['one', 'two']);
  await expect(open()).rejects.toThrow(KeyStoreInUseError);
  await bob.close();
  await keyStore.close();
  await alice.send(conversationId, 'three');

  const processes = world.constellation.replicas.map(({ process }) => process);
  await Promise.all(processes.map((process) => process.kill('SIGKILL')));

  keyStore = await open();
  const offline = world.device(b, 'phone', { keyStore });
  const hasToo = collector(offline);
  const waits = new Promise<void>((resolve) => offline.on('state', ({ state }) => state === 'waiting' && resolve()));
  const attached = offline.attach();
  await offline.enqueue(conversationId, 'four');
  await offline.enqueue(conversationId, 'five');
  await waits;
  expect(await offline.outgoing()).toHaveLength(2);

  await Promise.all(processes.map((process) => process.restart()));
  await attached;
  expect(await hasToo(3)).toEqual(['three', 'four', 'five']);
  await offline.receive();
  expect(await hasToo(3)).toHaveLength(3);
  expect(await offline.outgoing()).toEqual([]);
  expect((await alice.messages(conversationId)).map((message) => 'text' in message && message.text)).toEqual([
    'one',
    'two',
    'three',
    'four',
    'five',
  ]);
  await offline.close();
  await keyStore.close();
});

test('a device that is away hears of nothing twice, and of what it missed in several conversations', async () => {
  const [a, b] = [someone('alice'), someone('bob')];
  const path = join(folder, 'more.keys');
  const alice = await world.online(a, 'laptop');
  const texts: string[] = [];
  for (let round = 0; round < 3; round += 1) {
    const keyStore = await openDiskKeyStore({ path, secret });
    const bob = world.device(b, 'phone', { keyStore });
    await bob.register();
    bob.onMessage((message) => void texts.push(textOf(message)));
    const { conversationId } = await alice.createConversation({ kind: 'group', members: [b] });
    await alice.send(conversationId, `round ${round}`);
    await bob.receive();
    await bob.receive();
    await bob.close();
    await keyStore.close();
  }
  expect(texts).toEqual(['round 0', 'round 1', 'round 2']);
});
