import { type Envelope, type KeyRequest, KeyRequestKind, KeyRequestState, NotificationKind } from '@keytrail/contracts';
import { parseHeader, sealEnvelope, verifyDevice } from '@keytrail/crypto';
import { nodePrimitives } from '@keytrail/crypto/node';
import { refuse } from '@keytrail/rpc/refusal';
import { expect, test } from 'vitest';
import { type KeyStore, type KeytrailClient, memoryKeyStore, SessionRefusedError } from '../src/index.ts';
import { FakeClock } from './fake-clock.ts';
import { approvedDevice, clientOf, firstDevice, next } from './people.ts';
import { World } from './world.ts';

interface Scene {
  readonly world: World;
  readonly alice: KeytrailClient;
  readonly aliceStore: KeyStore;
  readonly phone: KeytrailClient;
  readonly phoneStore: KeyStore;
  readonly clock: FakeClock;
  readonly conversationId: string;
  readonly sessionId: string;
}

/** Alice has a session; her new phone misses its key. No holder answers by itself. */
async function missingKey(): Promise<Scene> {
  const world = new World();
  const clock = new FakeClock();
  const [aliceStore, phoneStore] = [memoryKeyStore(), memoryKeyStore()];
  const alice = await firstDevice(world, 'alice', 'laptop', { keyStore: aliceStore });
  const { conversationId, sessionId } = await alice.createConversation({ kind: 'group', members: [] });
  const phone = await approvedDevice(world, alice, 'phone', { clock, keyStore: phoneStore });
  return { world, alice, aliceStore, phone, phoneStore, clock, conversationId, sessionId };
}

/** An envelope as Alice's laptop would make it, but with this session key. */
async function envelopeFor(scene: Scene, attempt: number, sessionKey?: Uint8Array): Promise<Envelope> {
  const { world, aliceStore, conversationId, sessionId } = scene;
  const held = await aliceStore.session(conversationId, sessionId);
  const own = await aliceStore.device();
  const sealer = world.device('alice', 'laptop');
  if (!held || !own?.rootKey || !sealer.certificate) throw new Error('alice has no session');
  return sealEnvelope({
    primitives: nodePrimitives,
    sealer: { ...own, certificate: sealer.certificate },
    recipient: verifyDevice(nodePrimitives, world.device('alice', 'phone'), own.rootKey.publicKey),
    session: parseHeader(held.header),
    attempt,
    sessionKey: sessionKey ?? held.sessionKey,
  });
}

async function nextRequest({ world }: Scene, kind?: KeyRequestKind): Promise<KeyRequest> {
  for (;;) {
    const open = world.keyRequests.find(
      ({ state, kind: its }) => state <= KeyRequestState.OFFERED && (kind === undefined || its === kind),
    );
    if (open) return open;
    await new Promise<void>((resolve) => {
      for (const method of ['requestKey', 'rejectKey']) world.after.set(method, () => resolve());
    });
  }
}

test('many who want a session at once cost one read, one request and one recovery', async () => {
  const scene = await missingKey();
  const { world, phone, conversationId, sessionId } = scene;
  await phone.attach();
  const wanted = Array.from({ length: 10 }, () => phone.openSession(conversationId, sessionId));
  const request = await nextRequest(scene);
  world.deliver(request, await envelopeFor(scene, 1));
  expect((await Promise.all(wanted)).map(({ origin }) => origin)).toEqual(Array(10).fill('recovered'));
  expect(world.requested).toEqual([KeyRequestKind.MISSING]);
  expect(world.count('getInitialSession')).toBe(2);
  await phone.close();
});

test('without a stream it asks again, each time later', async () => {
  const scene = await missingKey();
  const { world, phone, clock, conversationId, sessionId } = scene;
  const opening = phone.openSession(conversationId, sessionId, { timeoutMs: 3_600_000 });
  for (let looks = 1; looks <= 4; looks += 1) {
    await clock.untilSomebodyWaits();
    expect(world.count('getInitialSession')).toBe(looks);
    if (looks === 4) world.deliver(await nextRequest(scene), await envelopeFor(scene, 1));
    clock.advance(clock.waits.at(-1) ?? 0);
  }
  expect((await opening).attempt).toBe(1);
  // 50 ms, then doubled each time; jittered by half to twice.
  for (const [look, waited] of clock.waits.entries()) {
    expect(waited).toBeGreaterThanOrEqual(25 * 2 ** look);
    expect(waited).toBeLessThanOrEqual(100 * 2 ** look);
  }
});

test('a wrong key is rejected and the next envelope is taken', async () => {
  const scene = await missingKey();
  const { world, phone, conversationId, sessionId } = scene;
  await phone.attach();
  const opening = phone.openSession(conversationId, sessionId);
  world.deliver(await nextRequest(scene), await envelopeFor(scene, 1, nodePrimitives.randomBytes(32)));
  const again = await nextRequest(scene, KeyRequestKind.REJECTED);
  expect(world.rejected).toEqual([{ by: 'alice phone', attempt: 1 }]);
  world.deliver(again, await envelopeFor(scene, 2));
  expect(await opening).toMatchObject({ attempt: 2, origin: 'recovered' });
  await phone.close();
  expect(world.acknowledged).toEqual([{ by: 'alice phone', sessionId, attempt: 2 }]);
});

test('an envelope whose signature was broken is rejected', async () => {
  const scene = await missingKey();
  const { world, phone, conversationId, sessionId } = scene;
  await phone.attach();
  const opening = phone.openSession(conversationId, sessionId);
  const broken = await envelopeFor(scene, 1);
  broken.ciphertext[0] = (broken.ciphertext[0] ?? 0) ^ 1;
  world.deliver(await nextRequest(scene), broken);
  world.deliver(await nextRequest(scene, KeyRequestKind.REJECTED), await envelopeFor(scene, 2));
  expect((await opening).attempt).toBe(2);
  await phone.close();
});

test('an envelope whose prekey is gone is asked for again', async () => {
  const scene = await missingKey();
  const { world, phone, conversationId, sessionId } = scene;
  await phone.attach();
  const opening = phone.openSession(conversationId, sessionId);
  const envelope = await envelopeFor(scene, 1);
  await scene.phoneStore.saveSession(
    {
      conversationId: 'another',
      sessionId: 'another',
      epoch: 1n,
      header: new Uint8Array(),
      headerSignature: new Uint8Array(),
      sessionKey: new Uint8Array(32),
      attempt: 0,
      sealer: { userId: 'alice', deviceId: 'laptop' },
    },
    [{ kind: 'kem-last-resort', keyId: envelope.kemPrekeyId }],
  );
  world.deliver(await nextRequest(scene), envelope);
  await nextRequest(scene, KeyRequestKind.REWRAP);
  await phone.close();
  await expect(opening).rejects.toThrow('closed');
});

test('a request that ends without a key says why', async () => {
  const scene = await missingKey();
  const { world, phone, conversationId, sessionId } = scene;
  await phone.attach();
  const ended = next(phone, 'keyRequestEnded');
  const opening = phone.openSession(conversationId, sessionId);
  const request = await nextRequest(scene);
  world.endRequest(request, 'all_holders_declined');
  await expect(opening).rejects.toMatchObject({
    cause: 'DEVICE_ADDED_AFTER_SESSION',
    endedBecause: 'all_holders_declined',
    keyRequestId: request.keyRequestId,
  });
  expect(await ended).toMatchObject({ keyRequestId: request.keyRequestId });
  await phone.close();
});

test('a caller whose time is up is told how the request stands, and leaves it standing', async () => {
  const scene = await missingKey();
  const { world, phone, clock, conversationId, sessionId } = scene;
  world.holdersOnline = false;
  const opening = phone.openSession(conversationId, sessionId, { timeoutMs: 1_000 });
  const outcome = expect(opening).rejects.toMatchObject({ timedOut: true, recovery: 'PENDING_NO_HOLDER_ONLINE' });
  await clock.untilSomebodyWaits();
  clock.advance(1_000);
  await outcome;
  expect(world.keyRequests[0]?.state).toBe(KeyRequestState.WAITING_FOR_HOLDER);
});

test('a caller who gives up does not disturb another who waits', async () => {
  const scene = await missingKey();
  const { world, phone, conversationId, sessionId } = scene;
  await phone.attach();
  const control = new AbortController();
  const one = phone.openSession(conversationId, sessionId, { signal: control.signal });
  const other = phone.openSession(conversationId, sessionId);
  const request = await nextRequest(scene);
  control.abort(new Error('not needed any more'));
  await expect(one).rejects.toThrow('not needed any more');
  world.deliver(request, await envelopeFor(scene, 1));
  expect((await other).attempt).toBe(1);
  await phone.close();
});

test('a hint that comes twice, or for a key that is here, does nothing', async () => {
  const scene = await missingKey();
  const { world, phone, conversationId, sessionId } = scene;
  await phone.attach();
  const opening = phone.openSession(conversationId, sessionId);
  const request = await nextRequest(scene);
  world.deliver(request, await envelopeFor(scene, 1));
  await opening;
  const reads = world.count('getInitialSession');
  const { keyRequestId } = request;
  const seen = next(phone, 'messageAdded');
  const stream = world.streams.get('alice phone');
  stream?.push({ kind: NotificationKind.KEY_DELIVERED, conversationId, sessionId, keyRequestId });
  stream?.push({ kind: NotificationKind.MESSAGE_ADDED, conversationId });
  await seen;
  await phone.close();
  expect(world.count('getInitialSession')).toBe(reads);
});

test('a header that does not follow the one before is refused', async () => {
  const world = new World();
  const keyStore = memoryKeyStore();
  const alice = await firstDevice(world, 'alice', 'laptop', { keyStore });
  const bob = await firstDevice(world, 'bob');
  const { conversationId, sessionId } = await alice.createConversation({ kind: 'direct', members: ['bob'] });
  await bob.openSession(conversationId, sessionId);
  // A server that shows another past to a device that knows none makes it sign a header that does not fit what Bob has.
  const forgetful = { ...keyStore, sessionOfEpoch: async () => undefined };
  const headerHash = new Uint8Array(32).fill(7);
  world.conversations.set(conversationId, { ...world.conversation(conversationId), headerHash });
  await expect(alice.rotate(conversationId)).rejects.toMatchObject({ problem: 'fork' });
  const { sessionId: second } = await clientOf(world, 'alice', 'laptop', { keyStore: forgetful }).rotate(
    conversationId,
  );
  const refused = await bob.openSession(conversationId, second).catch((error) => error);
  expect(refused).toBeInstanceOf(SessionRefusedError);
  expect(refused.problem).toBe('chain');
});

test('a header by somebody else than its initiator is refused', async () => {
  const world = new World();
  const [alice, bob] = [await firstDevice(world, 'alice'), await firstDevice(world, 'bob')];
  const { conversationId, sessionId } = await alice.createConversation({ kind: 'direct', members: ['bob'] });
  const { session } = world.session(sessionId);
  if (session.signedHeader) session.signedHeader.signature = new Uint8Array(64).fill(1);
  const refused = await bob.openSession(conversationId, sessionId).catch((error) => error);
  expect(refused).toBeInstanceOf(SessionRefusedError);
  expect(refused.problem).toBe('header');
});

test('a service that is out of reach for a moment is asked again', async () => {
  const world = new World();
  const clock = new FakeClock();
  const alice = clientOf(world, 'alice', 'laptop', { clock });
  let failures = 2;
  world.before.set('registerDevice', () => {
    failures -= 1;
    if (failures >= 0) throw refuse('PEER_UNAVAILABLE', 'one moment', { retryAfterMs: 700 });
  });
  const registering = alice.register();
  for (let i = 0; i < 2; i += 1) {
    await clock.untilSomebodyWaits();
    expect(clock.waits.at(-1)).toBeGreaterThanOrEqual(700);
    clock.advance(10_000);
  }
  await registering;
  expect(world.device('alice', 'laptop').deviceId).toBe('laptop');
});
