import { Code, ConnectError } from '@connectrpc/connect';
import { MissCause, Recovery } from '@keytrail/contracts';
import { refuse, refuseMiss } from '@keytrail/rpc/refusal';
import { expect, test } from 'vitest';
import { type KeyStore, type KeytrailClient, memoryKeyStore } from '../src/index.ts';
import { type FaultyTransports, faulty } from './faulty-transports.ts';
import { approvedDevice, clientOf, firstDevice, next } from './people.ts';
import { World } from './world.ts';

interface Scene {
  readonly world: World;
  readonly keyStore: KeyStore;
  readonly transports: FaultyTransports;
  readonly alice: KeytrailClient;
  readonly conversationId: string;
}

const once = { retry: { retries: 0 } };

async function aliceWithConversation(): Promise<Scene> {
  const world = new World();
  const keyStore = memoryKeyStore();
  const transports = faulty(world.transports('alice', 'laptop'));
  const alice = await firstDevice(world, 'alice', 'laptop', { keyStore, transports, ...once });
  const { conversationId } = await alice.createConversation({ kind: 'group', members: [] });
  return { world, keyStore, transports, alice, conversationId };
}

/** Another process of the same device, with its servers as they are. */
function restarted({ world, keyStore, transports }: Scene): KeytrailClient {
  return clientOf(world, 'alice', 'laptop', { keyStore, transports, ...once });
}

async function textsIn({ world, conversationId }: Scene, reader: KeytrailClient): Promise<(string | Error)[]> {
  const read = await reader.messages(conversationId);
  expect(read).toHaveLength(world.messages.get(conversationId)?.length ?? 0);
  return read.map((message) => ('error' in message ? message.error : message.text));
}

/** Resolves when so many events of a name came. */
function times(client: KeytrailClient, name: 'messageSent', count: number): Promise<void> {
  return new Promise((resolve) => {
    let left = count;
    client.on(name, () => {
      left -= 1;
      if (left === 0) resolve();
    });
  });
}

test('what is enqueued while the servers are away is sent once they are back, in its order', async () => {
  const scene = await aliceWithConversation();
  const { alice, transports, conversationId } = scene;
  transports.away = true;
  const attached = alice.attach();
  for (const text of ['one', 'two', 'three']) await alice.enqueue(conversationId, text);
  expect((await alice.outgoing()).map(({ plaintext }) => new TextDecoder().decode(plaintext))).toEqual([
    'one',
    'two',
    'three',
  ]);
  await next(alice, 'state');
  const sent = times(alice, 'messageSent', 3);
  transports.away = false;
  await Promise.all([attached, sent]);
  expect(await textsIn(scene, alice)).toEqual(['one', 'two', 'three']);
  expect(await alice.outgoing()).toEqual([]);
  await alice.close();
});

test('a client that starts without its servers keeps what is enqueued over another restart', async () => {
  const scene = await aliceWithConversation();
  const { transports, conversationId } = scene;
  transports.away = true;
  await scene.alice.close();

  const offline = restarted(scene);
  const failed = new Promise<unknown>((resolve) =>
    offline.on('state', ({ state, error }) => state === 'waiting' && resolve(error)),
  );
  const attaching = offline.attach();
  attaching.catch(() => {});
  const { id } = await offline.enqueue(conversationId, 'from afar');
  expect(await failed).toMatchObject({ code: Code.Unavailable });
  expect(offline.isAttached).toBe(false);
  await offline.close();
  await expect(attaching).rejects.toThrow('detached');

  transports.away = false;
  const back = restarted(scene);
  const sent = next(back, 'messageSent');
  await back.attach();
  expect(await sent).toMatchObject({ id, conversationId, sequence: 1n });
  expect(await textsIn(scene, back)).toEqual(['from afar']);
  await back.close();
});

test('a client that starts without its servers reads what it has: sessions, and messages that are handed to it', async () => {
  const scene = await aliceWithConversation();
  const { world, alice, transports, conversationId } = scene;
  const phone = await approvedDevice(world, alice, 'phone');
  await alice.rotate(conversationId);
  await phone.send(conversationId, 'from the phone');
  const [read] = await alice.messages(conversationId);
  expect(read).toMatchObject({ text: 'from the phone' });
  await alice.close();

  transports.away = true;
  const offline = restarted(scene);
  const sessionId = world.conversation(conversationId).sessionId;
  expect(await offline.openSession(conversationId, sessionId)).toMatchObject({ origin: 'store', epoch: 2n });
  const log = world.messages.get(conversationId) ?? [];
  expect(await offline.decrypt(conversationId, log)).toMatchObject([{ text: 'from the phone' }]);
  const unknown = log.map((message) => ({ ...message, sessionId: 'another' }));
  expect(await offline.decrypt(conversationId, unknown)).toMatchObject([{ error: { code: Code.Unavailable } }]);
  await Promise.all([offline.close(), phone.close()]);
});

test('a message whose answer was lost is sent again as the same request, and is there once', async () => {
  const scene = await aliceWithConversation();
  const { world, alice, conversationId } = scene;
  const requests: { requestId: string; ciphertext: Uint8Array }[] = [];
  world.before.set('sendMessage', (request: never) => void requests.push(request));
  world.after.set('sendMessage', () => {
    world.after.delete('sendMessage');
    throw new ConnectError('the connection broke', Code.Unavailable);
  });
  const sent = next(alice, 'messageSent');
  await alice.enqueue(conversationId, 'hello');
  expect(await sent).toMatchObject({ sequence: 1n });
  expect(requests).toHaveLength(2);
  expect(requests[1]).toEqual(requests[0]);
  expect(await textsIn(scene, alice)).toEqual(['hello']);
  await alice.close();
});

test('a process that ends between sending and the answer sends the same request again, and it is there once', async () => {
  const scene = await aliceWithConversation();
  const { world, alice, transports, conversationId } = scene;
  const requests: { requestId: string; ciphertext: Uint8Array }[] = [];
  world.before.set('sendMessage', (request: never) => void requests.push(request));
  const arrived = new Promise<void>((resolve) => {
    world.after.set('sendMessage', () => {
      world.after.delete('sendMessage');
      resolve();
      // Nobody hears of it: the process is gone.
      return new Promise(() => {});
    });
  });
  await alice.enqueue(conversationId, 'hello');
  await arrived;
  transports.away = true;
  await alice.close();
  expect(world.messages.get(conversationId)).toHaveLength(1);

  transports.away = false;
  const back = restarted(scene);
  const sent = next(back, 'messageSent');
  await back.attach();
  expect(await sent).toMatchObject({ sequence: 1n });
  expect(requests[1]).toEqual(requests[0]);
  expect(await textsIn(scene, back)).toEqual(['hello']);
  await back.close();
});

test('a rotation that is required is made, and the message goes out under the new session, once', async () => {
  const scene = await aliceWithConversation();
  const { world, alice } = scene;
  await firstDevice(world, 'bob');
  const { conversationId } = await alice.createConversation({ kind: 'group', members: ['bob'] });
  await alice.removeMembers(conversationId, ['bob']);
  const sent = next(alice, 'messageSent');
  await alice.enqueue(conversationId, 'without bob');
  expect(await sent).toMatchObject({ epoch: 2n });
  expect(await textsIn({ ...scene, conversationId }, alice)).toEqual(['without bob']);
  await alice.close();
});

test('a message that is refused is told and waits no more, and those behind it are sent', async () => {
  const scene = await aliceWithConversation();
  const { world, alice, conversationId } = scene;
  world.before.set('sendMessage', () => {
    world.before.delete('sendMessage');
    throw refuse('INVALID_FIELD', 'too long');
  });
  const [notSent, sent] = [next(alice, 'messageNotSent'), next(alice, 'messageSent')];
  const long = await alice.enqueue(conversationId, 'long');
  const short = await alice.enqueue(conversationId, 'short');
  expect(await notSent).toMatchObject({ id: long.id, error: { reason: 'INVALID_FIELD' } });
  expect(await sent).toMatchObject({ id: short.id });
  expect(await textsIn(scene, alice)).toEqual(['short']);
  await alice.close();
});

test('a conversation that cannot be sent to does not keep another one waiting', async () => {
  const scene = await aliceWithConversation();
  const { world, alice, conversationId } = scene;
  const other = await alice.createConversation({ kind: 'group', members: [] });
  world.before.set('sendMessage', (request: { conversationId: string }) => {
    if (request.conversationId === conversationId) throw new ConnectError('not now', Code.Unavailable);
  });
  await alice.enqueue(conversationId, 'stuck');
  const sent = next(alice, 'messageSent');
  const { id } = await alice.enqueue(other.conversationId, 'through');
  expect(await sent).toMatchObject({ id });
  expect(await alice.outgoing()).toHaveLength(1);
  await alice.close();
});

test('a long queue is read from the store a few times, not once for each message', async () => {
  const scene = await aliceWithConversation();
  const { alice, keyStore, transports, conversationId } = scene;
  transports.away = true;
  for (let n = 0; n < 60; n += 1) await alice.enqueue(conversationId, `message ${n}`);
  await alice.close();
  let reads = 0;
  const counting: KeyStore = {
    ...keyStore,
    outgoing() {
      reads += 1;
      return keyStore.outgoing();
    },
  };
  transports.away = false;
  const back = clientOf(scene.world, 'alice', 'laptop', { keyStore: counting, transports, ...once });
  const sent = times(back, 'messageSent', 60);
  await back.attach();
  await sent;
  expect(await textsIn(scene, back)).toEqual(Array.from({ length: 60 }, (_, n) => `message ${n}`));
  expect(reads).toBeLessThan(10);
  await back.close();
});

test('where nobody is left who has the key of the session, a new session is made to send under', async () => {
  const { world, alice, conversationId } = await aliceWithConversation();
  const phone = await approvedDevice(world, alice, 'phone');
  const { sessionId } = world.conversation(conversationId);
  world.before.set('getInitialSession', (request: { sessionId: string }) => {
    if (request.sessionId !== sessionId) return;
    throw refuseMiss({ cause: MissCause.DEVICE_ADDED_AFTER_SESSION, recovery: Recovery.NO_HOLDER_EXISTS });
  });
  const sent = next(phone, 'messageSent');
  await phone.enqueue(conversationId, 'hello');
  expect(await sent).toMatchObject({ epoch: 2n });
  expect(await alice.messages(conversationId)).toMatchObject([{ text: 'hello' }]);
  await Promise.all([alice.close(), phone.close()]);
});
