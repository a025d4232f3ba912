import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { KeytrailClient } from '@keytrail/client';
import { openDiskKeyStore } from '@keytrail/client/disk';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { someone, startWorld, type World } from './world.ts';

let world: World;
const folder = mkdtempSync(join(tmpdir(), 'keytrail-without-help-'));

beforeAll(async () => {
  world = await startWorld({ name: 'test-without-help', replicas: { session: 2, presence: 2 } });
});
afterAll(async () => {
  await world?.[Symbol.asyncDispose]();
  rmSync(folder, { recursive: true, force: true });
});

/** What the world's clients leave out for other tests is as an application has it that says nothing. */
const defaults = { recoverHistory: true, autoRotate: true } as const;

/** What a device's application has to read, in the order of the log, and how often it was given each text. */
function reader(client: KeytrailClient) {
  const texts = new Map<bigint, string>();
  const given: string[] = [];
  let changed = Promise.withResolvers<void>();
  client.onMessage((message) => {
    if ('error' in message) return;
    texts.set(message.sequence, message.text);
    given.push(message.text);
    changed.resolve();
    changed = Promise.withResolvers<void>();
  });
  const inOrder = () => [...texts].sort(([a], [b]) => Number(a - b)).map(([, text]) => text);
  const has = async (count: number): Promise<string[]> => {
    while (texts.size < count) await changed.promise;
    return inOrder();
  };
  return { has, given, inOrder };
}

test('a group with a linked device, a removed member and a device that was away needs nothing of its application', async () => {
  const [a, b, c] = [someone('alice'), someone('bob'), someone('carol')];
  const path = join(folder, 'bob.keys');
  const secret = { key: new Uint8Array(32).fill(7) };
  let keyStore = await openDiskKeyStore({ path, secret });
  const [laptop, bob, carol] = await Promise.all([
    world.online(a, 'laptop', defaults),
    world.online(b, 'phone', { ...defaults, keyStore }),
    world.online(c, 'phone', defaults),
  ]);
  const [laptopReads, bobReads, carolReads] = [reader(laptop), reader(bob), reader(carol)];
  const { conversationId } = await laptop.createConversation({ kind: 'group', members: [b, c] });
  await laptop.enqueue(conversationId, 'one');
  expect(await bobReads.has(1)).toEqual(['one']);
  await bob.close();
  await keyStore.close();

  await laptop.enqueue(conversationId, 'two');
  expect(await carolReads.has(2)).toEqual(['one', 'two']);
  const tablet = await world.further(laptop, a, 'tablet', defaults);
  const tabletReads = reader(tablet);
  await tablet.attach();
  expect(await tabletReads.has(2)).toEqual(['one', 'two']);

  await laptop.removeMembers(conversationId, [c]);
  await tablet.enqueue(conversationId, 'three');
  expect(await laptopReads.has(3)).toEqual(['one', 'two', 'three']);

  keyStore = await openDiskKeyStore({ path, secret });
  const back = world.device(b, 'phone', { ...defaults, keyStore });
  const backReads = reader(back);
  await back.enqueue(conversationId, 'four');
  await back.attach();
  expect(await backReads.has(3)).toEqual(['two', 'three', 'four']);
  for (const reads of [laptopReads, tabletReads]) {
    expect(await reads.has(4)).toEqual(['one', 'two', 'three', 'four']);
    expect(reads.given).toHaveLength(4);
  }
  expect(backReads.given).toHaveLength(3);
  expect(carolReads.inOrder()).toEqual(['one', 'two']);
  expect((await back.getConversation(conversationId)).epoch).toBeGreaterThan(1n);
  await back.close();
  await keyStore.close();
});
