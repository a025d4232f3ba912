import {
  KeyRejectionReason,
  type KeyRequest,
  KeyRequestKind,
  KeyRequestPriority,
  KeyRequestState,
  NotificationKind,
} from '@keytrail/contracts';
import { parseHeader, sealEnvelope, verifyDevice } from '@keytrail/crypto';
import { nodePrimitives } from '@keytrail/crypto/node';
import { refuse } from '@keytrail/rpc/refusal';
import { expect, test } from 'vitest';
import { cursors } from '../src/cursors.ts';
import { type ClientEvents, type KeyStore, type KeytrailClient, memoryKeyStore } from '../src/index.ts';
import { approvedDevice, clientOf, firstDevice, next } from './people.ts';
import { World } from './world.ts';

interface Scene {
  readonly world: World;
  readonly alice: KeytrailClient;
  readonly aliceStore: KeyStore;
  readonly phone: KeytrailClient;
  readonly phoneStore: KeyStore;
  readonly sessions: readonly { readonly conversationId: string; readonly sessionId: string }[];
}

/** Alice is in conversations; her new phone has been linked, and looks for what it lacks when it attaches. */
async function linked(conversations: number): Promise<Scene> {
  const world = new World();
  const [aliceStore, phoneStore] = [memoryKeyStore(), memoryKeyStore()];
  const alice = await firstDevice(world, 'alice', 'laptop', { keyStore: aliceStore });
  const sessions: Scene['sessions'][number][] = [];
  for (let n = 0; n < conversations; n += 1) {
    const { conversationId, sessionId } = await alice.createConversation({ kind: 'group', members: [] });
    sessions.push({ conversationId, sessionId });
  }
  const phone = await approvedDevice(world, alice, 'phone', { keyStore: phoneStore, recoverHistory: true });
  return { world, alice, aliceStore, phone, phoneStore, sessions };
}

/** When nothing is wanted any more: how it went. */
function settled(client: KeytrailClient): Promise<ClientEvents['keysWanted']> {
  return new Promise((resolve) => {
    const off = client.on('keysWanted', (progress) => {
      if (progress.left > 0) return;
      off();
      resolve(progress);
    });
  });
}

/** An envelope as Alice's laptop would make it, but with this session key. */
async function envelopeFor({ world, aliceStore }: Scene, request: KeyRequest, sessionKey?: Uint8Array) {
  const held = await aliceStore.session(request.conversationId, request.sessionId);
  const own = await aliceStore.device();
  const { certificate } = world.device('alice', 'laptop');
  if (!held || !own?.rootKey || !certificate) throw new Error('alice has no session');
  return sealEnvelope({
    primitives: nodePrimitives,
    sealer: { ...own, certificate },
    recipient: verifyDevice(nodePrimitives, world.device('alice', 'phone'), own.rootKey.publicKey),
    session: parseHeader(held.header),
    attempt: request.attempt,
    sessionKey: sessionKey ?? held.sessionKey,
  });
}

/** The next open request, whoever makes it. */
async function nextRequest({ world }: Scene, kind: KeyRequestKind): Promise<KeyRequest> {
  for (;;) {
    const open = world.keyRequests.find(({ state, kind: its }) => state <= KeyRequestState.OFFERED && its === kind);
    if (open) return open;
    await new Promise<void>((resolve) => {
      for (const method of ['requestKeys', 'rejectKey']) world.after.set(method, () => resolve());
    });
  }
}

test('a device that was just linked gets all keys that it lacks, in a few calls, and costs one one-time prekey', async () => {
  const { world, alice, phone, phoneStore, sessions } = await linked(120);
  await alice.attach();
  const claimed = world.claims.length;
  const done = settled(phone);
  await phone.attach();
  expect(await done).toEqual({ left: 0, delivered: 120, refused: 0 });
  expect(world.keys.asked.map(({ by, keys }) => [by, keys.length])).toEqual([['alice phone', 120]]);
  expect(new Set(world.keys.asked.flatMap(({ keys }) => keys.map(({ priority }) => priority)))).toEqual(
    new Set([KeyRequestPriority.BACKGROUND]),
  );
  expect(world.keys.fulfilled.map(({ count }) => count)).toEqual([50, 50, 20]);
  expect(world.claims.slice(claimed).map(({ devices }) => devices)).toEqual([['alice phone']]);
  expect(world.count('getInitialSession')).toBe(120);
  expect(world.count('requestKey')).toBe(0);
  for (const { conversationId, sessionId } of sessions) {
    expect((await phone.openSession(conversationId, sessionId)).origin).toBe('store');
  }
  await Promise.all([alice.close(), phone.close()]);
  expect(await phoneStore.wantedKeys()).toEqual([]);
  expect(world.acknowledged).toHaveLength(120);
});

test('what a process left unfinished, the next one goes on with, and does not look through everything again', async () => {
  const { world, alice, phone, phoneStore } = await linked(3);
  world.holdersOnline = false;
  const asked = new Promise<void>((resolve) => world.after.set('requestKeys', () => resolve()));
  await phone.attach();
  await asked;
  await phone.close();
  expect(await phoneStore.wantedKeys()).toHaveLength(3);

  world.holdersOnline = true;
  const again = clientOf(world, 'alice', 'phone', { keyStore: phoneStore, recoverHistory: true });
  const done = settled(again);
  await again.attach();
  await new Promise<void>((resolve) => world.after.set('requestKeys', () => resolve()));
  world.keys.offer(world.keyRequests);
  await alice.attach();
  expect(await done).toEqual({ left: 0, delivered: 3, refused: 0 });
  expect(world.count('listSessions')).toBe(1);
  await Promise.all([alice.close(), again.close()]);
  expect(await phoneStore.wantedKeys()).toEqual([]);
});

test('keys that were delivered while the device was away are collected when it is back', async () => {
  const { world, alice, phone, phoneStore, sessions } = await linked(2);
  world.holdersOnline = false;
  const asked = new Promise<void>((resolve) => world.after.set('requestKeys', () => resolve()));
  await phone.attach();
  await asked;
  await phone.close();
  world.keys.offer(world.keyRequests);
  const answered = new Promise<void>((resolve) => world.after.set('fulfillKeyRequests', () => resolve()));
  await alice.attach();
  await answered;
  const again = clientOf(world, 'alice', 'phone', { keyStore: phoneStore, recoverHistory: true });
  const done = settled(again);
  await again.attach();
  expect(await done).toEqual({ left: 0, delivered: 2, refused: 0 });
  expect(world.keyRequests).toHaveLength(sessions.length);
  await Promise.all([alice.close(), again.close()]);
});

test('a key that is refused for good is told once, with what to do, and does not keep back the others', async () => {
  const { world, alice, phone, sessions } = await linked(3);
  await alice.attach();
  const [stranger] = sessions;
  world.keys.refuse = ({ sessionId }) =>
    sessionId === stranger?.sessionId ? { reason: 'NOT_FOUND_OR_NOT_PERMITTED' } : undefined;
  const refusals: ClientEvents['keyRefused'][] = [];
  phone.on('keyRefused', (refusal) => refusals.push(refusal));
  const done = settled(phone);
  await phone.attach();
  expect(await done).toEqual({ left: 0, delivered: 2, refused: 1 });
  expect(refusals).toMatchObject([{ ...stranger, reason: 'NOT_FOUND_OR_NOT_PERMITTED', remedy: 'NONE' }]);
  await Promise.all([alice.close(), phone.close()]);
});

test('a limit on one key is waited for, and so is one on the whole call', async () => {
  const { world, alice, phone, sessions } = await linked(3);
  await alice.attach();
  const late = new Set([sessions[1]?.sessionId]);
  world.keys.refuse = ({ sessionId }) =>
    late.delete(sessionId) ? { reason: 'LIMIT_EXCEEDED', retryAfterMs: 5 } : undefined;
  let refusals = 2;
  world.before.set('requestKeys', () => {
    refusals -= 1;
    if (refusals >= 0) throw refuse('LIMIT_EXCEEDED', 'too many', { retryAfterMs: 5 });
  });
  const done = settled(phone);
  await phone.attach();
  expect(await done).toEqual({ left: 0, delivered: 3, refused: 0 });
  expect(world.keys.asked.map(({ keys }) => keys.length)).toEqual([3, 1]);
  await Promise.all([alice.close(), phone.close()]);
});

test('a server that is out of reach for long loses no wanted key', async () => {
  const { world, alice, phone, phoneStore } = await linked(2);
  await alice.attach();
  world.before.set('requestKeys', () => {
    throw refuse('PEER_UNAVAILABLE', 'away');
  });
  const failed = next(phone, 'fault');
  await phone.attach();
  expect(await failed).toMatchObject({ during: 'ask for keys' });
  expect(await phoneStore.wantedKeys()).toHaveLength(2);
  const done = settled(phone);
  world.before.delete('requestKeys');
  expect(await done).toEqual({ left: 0, delivered: 2, refused: 0 });
  await Promise.all([alice.close(), phone.close()]);
});

test('a wrong envelope is rejected with what is wrong, and the next holder’s is taken', async () => {
  const scene = await linked(1);
  const { world, phone } = scene;
  const done = settled(phone);
  await phone.attach();
  const request = await nextRequest(scene, KeyRequestKind.MISSING);
  request.attempt = 1;
  world.deliver(request, await envelopeFor(scene, request, nodePrimitives.randomBytes(32)));
  const again = await nextRequest(scene, KeyRequestKind.REJECTED);
  expect(world.keys.rejections).toEqual([{ by: 'alice phone', attempt: 1, reason: KeyRejectionReason.COMMITMENT }]);
  again.attempt = 2;
  world.deliver(again, await envelopeFor(scene, again));
  expect(await done).toEqual({ left: 0, delivered: 1, refused: 0 });
  await phone.close();
});

test('after too many wrong envelopes the application hears once that the key will not come', async () => {
  const scene = await linked(1);
  const { world, phone } = scene;
  const refusals: ClientEvents['keyRefused'][] = [];
  phone.on('keyRefused', (refusal) => refusals.push(refusal));
  const done = settled(phone);
  await phone.attach();
  for (let attempt = 1; attempt <= 6; attempt += 1) {
    const request = await nextRequest(scene, attempt === 1 ? KeyRequestKind.MISSING : KeyRequestKind.REJECTED);
    request.attempt = attempt;
    world.deliver(request, await envelopeFor(scene, request, nodePrimitives.randomBytes(32)));
  }
  expect(await done).toEqual({ left: 0, delivered: 0, refused: 1 });
  expect(refusals).toMatchObject([{ reason: 'too_many_wrong_envelopes', remedy: 'REQUEST_ROTATION' }]);
  expect(world.keys.rejections).toHaveLength(5);
  await phone.close();
});

test('a request that ends without a key ends the wait for it', async () => {
  const scene = await linked(2);
  const { world, phone } = scene;
  const refused = next(phone, 'keyRefused');
  await phone.attach();
  const request = await nextRequest(scene, KeyRequestKind.MISSING);
  world.endRequest(request, 'all_holders_declined');
  expect(await refused).toMatchObject({ sessionId: request.sessionId, reason: 'all_holders_declined' });
  await phone.close();
});

test('what the user opens is wanted in the foreground, also by the next process', async () => {
  const { world, phone, phoneStore, sessions } = await linked(3);
  world.holdersOnline = false;
  const asked = new Promise<void>((resolve) => world.after.set('requestKeys', () => resolve()));
  await phone.attach();
  await asked;
  const priorities: KeyRequestPriority[] = [];
  const raised = new Promise<void>((resolve) =>
    world.before.set('requestKey', (({ priority }: { priority: KeyRequestPriority }) => {
      priorities.push(priority);
      resolve();
    }) as never),
  );
  const [, looked] = sessions;
  const opening = phone.openSession(looked?.conversationId ?? '', looked?.sessionId);
  await raised;
  await phone.close();
  await expect(opening).rejects.toThrow('closed');
  expect(priorities).toEqual([KeyRequestPriority.FOREGROUND]);

  world.keys.asked.splice(0);
  const again = clientOf(world, 'alice', 'phone', { keyStore: phoneStore, recoverHistory: true });
  const askedAgain = new Promise<void>((resolve) => world.after.set('requestKeys', () => resolve()));
  await again.attach();
  await askedAgain;
  expect(world.keys.asked[0]?.keys[0]).toMatchObject({
    sessionId: looked?.sessionId,
    priority: KeyRequestPriority.FOREGROUND,
  });
  await again.close();
});

test('fifty who want one session and many who want others are one request each, in two calls', async () => {
  const { world, alice, phone, sessions } = await linked(20);
  await alice.attach();
  const off = clientOf(world, 'alice', 'tablet');
  const link = await off.createLinkRequest();
  await off.registerApproved(await alice.approveDevice(link, await off.linkCode(link)));
  await off.attach();
  const [first] = sessions;
  const wanted = [...Array.from({ length: 50 }, () => first), ...sessions.slice(1)];
  const opened = await Promise.all(wanted.map((each) => off.openSession(each?.conversationId ?? '', each?.sessionId)));
  expect(new Set(opened.map(({ origin }) => origin))).toEqual(new Set(['recovered']));
  expect(world.count('requestKey') + world.count('requestKeys')).toBe(2);
  expect(world.keyRequests).toHaveLength(20);
  await Promise.all([alice.close(), phone.close(), off.close()]);
});

test('a key that the application came upon by itself is not wanted any more', async () => {
  const scene = await linked(2);
  const { world, phone, phoneStore, sessions } = scene;
  world.holdersOnline = false;
  const asked = new Promise<void>((resolve) => world.after.set('requestKeys', () => resolve()));
  await phone.attach();
  await asked;
  const done = settled(phone);
  world.tellsDeliveries = false;
  for (const request of world.keyRequests) {
    request.attempt = 1;
    world.deliver(request, await envelopeFor(scene, request));
  }
  const [first] = sessions;
  expect((await phone.openSession(first?.conversationId ?? '', first?.sessionId)).origin).toBe('read');
  world.streams.get('alice phone')?.push({ kind: NotificationKind.KEY_DELIVERED });
  expect(await done).toEqual({ left: 0, delivered: 2, refused: 0 });
  await phone.close();
  expect(await phoneStore.wantedKeys()).toEqual([]);
});

test('two devices of a user that were linked together both get everything', async () => {
  const { world, alice, phone } = await linked(10);
  const tablet = await approvedDevice(world, alice, 'tablet', { recoverHistory: true });
  await alice.attach();
  const done = [settled(phone), settled(tablet)];
  await Promise.all([phone.attach(), tablet.attach()]);
  expect(await Promise.all(done)).toMatchObject([{ delivered: 10 }, { delivered: 10 }]);
  await Promise.all([alice.close(), phone.close(), tablet.close()]);
});

test('a conversation whose roster is refused is told once, and not asked for again and again', async () => {
  const { world, alice, phone, sessions } = await linked(2);
  const [refused] = sessions;
  world.rosters.log(refused?.conversationId ?? '').splice(0);
  await alice.attach();
  const told: ClientEvents['keyRefused'][] = [];
  phone.on('keyRefused', (refusal) => told.push(refusal));
  const done = settled(phone);
  await phone.attach();
  expect(await done).toEqual({ left: 0, delivered: 1, refused: 1 });
  expect(told).toMatchObject([{ ...refused, reason: 'RosterRefusedError' }]);
  await Promise.all([alice.close(), phone.close()]);
});

test('the search for missing keys goes on when a service was away, and a pull that failed loses no key', async () => {
  const scene = await linked(2);
  const { world, phone } = scene;
  world.holdersOnline = false;
  world.before.set('listSessions', () => {
    world.before.delete('listSessions');
    throw refuse('INTERNAL_FAULT', 'a moment');
  });
  const asked = new Promise<void>((resolve) => world.after.set('requestKeys', () => resolve()));
  const failed = next(phone, 'fault');
  await phone.attach();
  expect(await failed).toMatchObject({ during: 'look for keys', error: { reason: 'INTERNAL_FAULT' } });
  await asked;
  world.tellsDeliveries = false;
  for (const request of world.keyRequests) {
    request.attempt = 1;
    world.deliver(request, await envelopeFor(scene, request));
  }
  world.before.set('listKeyChanges', () => {
    throw refuse('INTERNAL_FAULT', 'a moment');
  });
  const done = settled(phone);
  world.streams.get('alice phone')?.push({ kind: NotificationKind.KEY_DELIVERED });
  expect(await done).toEqual({ left: 0, delivered: 2, refused: 0 });
  await phone.close();
});

test('a delivered key that is refused does not keep those behind it from being pulled', async () => {
  const scene = await linked(2);
  const { world, phone, phoneStore, sessions } = scene;
  await phone.close();
  const again = clientOf(world, 'alice', 'phone', { keyStore: phoneStore });
  world.holdersOnline = false;
  for (const { conversationId, sessionId } of sessions) await again.requestKey(conversationId, sessionId);
  for (const request of world.keyRequests) {
    request.attempt = 1;
    world.deliver(request, await envelopeFor(scene, request));
  }
  world.rosters.log(sessions[0]?.conversationId ?? '').splice(0);
  const [delivered, fault] = [next(again, 'keyDelivered'), next(again, 'fault')];
  await again.attach();
  expect(await delivered).toMatchObject({ sessionId: sessions[1]?.sessionId });
  expect(await fault).toMatchObject({ during: 'open delivered key', error: { problem: 'version' } });
  while ((await phoneStore.cursor(cursors.keys)) === undefined) await new Promise((resolve) => setImmediate(resolve));
  await again.close();
});

test('many keys are read and acknowledged some at a time, and who signed their rosters is looked up a few times', async () => {
  const world = new World();
  const alice = await firstDevice(world, 'alice');
  const bob = await firstDevice(world, 'bob');
  for (let n = 0; n < 30; n += 1) await bob.createConversation({ kind: 'group', members: ['alice'] });
  const phone = await approvedDevice(world, alice, 'phone', { recoverHistory: true });
  await bob.attach();
  const running = { getInitialSession: 0, ackKey: 0 };
  const most = { getInitialSession: 0, ackKey: 0 };
  for (const method of ['getInitialSession', 'ackKey'] as const) {
    world.before.set(method, (async (_request: unknown, { deviceId }: { deviceId: string }) => {
      if (deviceId !== 'phone') return;
      running[method] += 1;
      most[method] = Math.max(most[method], running[method]);
      await new Promise((resolve) => setImmediate(resolve));
      running[method] -= 1;
    }) as never);
  }
  let lookedUp = 0;
  world.before.set('getDevices', (_request: unknown, { deviceId }: { deviceId: string }) => {
    if (deviceId === 'phone') lookedUp += 1;
  });
  const done = settled(phone);
  await phone.attach();
  expect(await done).toEqual({ left: 0, delivered: 30, refused: 0 });
  await Promise.all([alice.close(), bob.close(), phone.close()]);
  expect(world.acknowledged).toHaveLength(30);
  expect(most.getInitialSession).toBe(8);
  expect(most.ackKey).toBeLessThanOrEqual(8);
  // At most as many as are read at the same time before the first one has the answer, for the header and for the roster.
  expect(lookedUp).toBeLessThanOrEqual(16);
});

test('a key that the queue and the application wait for is told once', async () => {
  const { world, alice, phone, sessions } = await linked(12);
  await alice.attach();
  const told: string[] = [];
  phone.on('keyDelivered', ({ sessionId }) => told.push(sessionId));
  const done = settled(phone);
  await phone.attach();
  await Promise.all(sessions.map(({ conversationId, sessionId }) => phone.openSession(conversationId, sessionId)));
  expect(await done).toMatchObject({ left: 0, delivered: 12 });
  expect(told.sort()).toEqual(sessions.map(({ sessionId }) => sessionId).sort());
  expect(world.keyRequests).toHaveLength(12);
  await Promise.all([alice.close(), phone.close()]);
});
