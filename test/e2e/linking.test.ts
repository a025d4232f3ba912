import type { ClientEvents, KeytrailClient } from '@keytrail/client';
import { memoryKeyStore } from '@keytrail/client';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { someone, startWorld, type World } from './world.ts';

let world: World;
const conversations = 12;

beforeAll(async () => {
  world = await startWorld({ name: 'test-linking', replicas: { session: 2, presence: 2 } });
});
afterAll(async () => {
  await world?.[Symbol.asyncDispose]();
});

/** When nothing is wanted any more: how it went. */
function settled(client: KeytrailClient): Promise<ClientEvents['keysWanted']> {
  return new Promise((resolve) => {
    client.on('keysWanted', (progress) => {
      if (progress.left === 0) resolve(progress);
    });
  });
}

/** A user in conversations with messages, online, and a new device of the same user that has been linked. */
async function linked() {
  const user = someone('alice');
  const laptop = await world.online(user, 'laptop');
  const ids: string[] = [];
  for (let n = 0; n < conversations; n += 1) {
    const { conversationId } = await laptop.createConversation({ kind: 'group', members: [] });
    await laptop.send(conversationId, `message ${n}`);
    ids.push(conversationId);
  }
  const keyStore = memoryKeyStore();
  const phone = await world.further(laptop, user, 'phone', { recoverHistory: true, keyStore });
  return { user, laptop, phone, keyStore, ids };
}

describe('a device that was just linked', () => {
  test('gets the keys of all conversations by itself, and reads every message without asking', async () => {
    const { phone, ids } = await linked();
    const faults: unknown[] = [];
    phone.on('fault', (fault) => faults.push(fault));
    const done = settled(phone);
    await phone.attach();
    expect(await done).toEqual({ left: 0, delivered: conversations, refused: 0 });
    for (const [n, conversationId] of ids.entries()) {
      expect(await phone.messages(conversationId, { recover: false })).toMatchObject([{ text: `message ${n}` }]);
    }
    expect(faults).toEqual([]);
  });

  test('gets them also when nobody was online, and it was started anew before somebody was', async () => {
    const { user, laptop, phone, keyStore } = await linked();
    await laptop.detach();
    await phone.attach();
    for (;;) {
      const requests = await phone.keyRequests();
      if (requests.length === conversations) break;
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    await phone.close();
    const again = world.device(user, 'phone', { keyStore, recoverHistory: true });
    const done = settled(again);
    await again.attach();
    await laptop.attach();
    expect(await done).toEqual({ left: 0, delivered: conversations, refused: 0 });
    expect(await keyStore.wantedKeys()).toEqual([]);
    expect(await again.keyRequests()).toEqual([]);
  });
});
