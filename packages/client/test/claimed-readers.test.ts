import type { ClaimPrekeyBundlesRequest, ClaimPrekeyBundlesResponse, PrekeyBundle } from '@keytrail/contracts';
import { KeyRequestKind, PrekeyKind } from '@keytrail/contracts';
import { certifyDevice, createKemPrekey, createSignedPrekey, type Ref } from '@keytrail/crypto';
import { nodePrimitives } from '@keytrail/crypto/node';
import { expect, test } from 'vitest';
import { DeviceListRefusedError, type KeyStore, type KeytrailClient, memoryKeyStore } from '../src/index.ts';
import { approvedDevice, firstDevice, next } from './people.ts';
import { World } from './world.ts';

const readersOf = (world: World, sessionId: string) => [...world.session(sessionId).envelopes.keys()];
const onClaim = (world: World, lie: (answer: ClaimPrekeyBundlesResponse) => void | Promise<void>) =>
  world.after.set('claimPrekeyBundles', lie as never);

/** Alice, and bob who has lost a device; alice has seen that it is revoked. */
async function afterRevocation() {
  const world = new World();
  const keyStore = memoryKeyStore();
  const alice = await firstDevice(world, 'alice');
  const bob = await firstDevice(world, 'bob', 'laptop', { keyStore });
  await approvedDevice(world, bob, 'stolen');
  const { conversationId } = await alice.createConversation({ kind: 'direct', members: ['bob'] });
  await bob.revokeDevice('stolen');
  const { sessionId } = await alice.rotate(conversationId);
  expect(readersOf(world, sessionId)).toEqual(['alice laptop', 'bob laptop']);
  return { world, alice, bob, keyStore, conversationId, sessionId };
}

/** The server claims from a revoked device as if it were a good one. */
function unrevokeInClaims(world: World, device: Ref, lie: (answer: ClaimPrekeyBundlesResponse) => void = () => {}) {
  const listed = world.device(device.userId, device.deviceId);
  const { revokedAt } = listed;
  world.before.set('claimPrekeyBundles', () => {
    listed.revokedAt = undefined as never;
  });
  onClaim(world, (answer) => {
    listed.revokedAt = revokedAt as never;
    lie(answer);
  });
}

/** Puts other keys into a bundle, which the user's root key certified under the same name, and which are in no log. */
async function withOtherKeys(keyStore: KeyStore, bundle: PrekeyBundle | undefined): Promise<void> {
  const rootKey = (await keyStore.device())?.rootKey;
  if (!rootKey || !bundle) throw new Error('nothing to exchange');
  const { userId, deviceId } = bundle;
  const [identityKey, signingKey] = [nodePrimitives.x25519.keyPair(), nodePrimitives.ed25519.keyPair()];
  const keys = { userId, deviceId, identityKey: identityKey.publicKey, signingKey: signingKey.publicKey };
  const signer = { userId, deviceId, signingKey };
  Object.assign(bundle, {
    ...keys,
    certificate: certifyDevice(nodePrimitives, rootKey, keys, new Date()),
    signedPrekey: createSignedPrekey(nodePrimitives, signer, 1).upload,
    kemPrekey: createKemPrekey(nodePrimitives, signer, 2, 'kem-last-resort').upload,
    kemPrekeyKind: PrekeyKind.LAST_RESORT,
    oneTimePrekey: undefined,
  });
}

/** How an attached client answers the offer of somebody's request. */
async function answerTo(world: World, holder: KeytrailClient, requester: Ref, session: [string, string]) {
  await holder.attach();
  const answer = Promise.race([
    next(holder, 'offerAnswered').then(() => 'answered'),
    next(holder, 'offerDeclined').then(({ reason }) => reason),
  ]);
  world.openRequest(requester, ...session, KeyRequestKind.MISSING);
  const said = await answer;
  await holder.close();
  return said;
}

test('who is named in the answer to a claim, and was not asked for, gets nothing', async () => {
  const world = new World();
  const alice = await firstDevice(world, 'alice');
  await firstDevice(world, 'bob');
  await firstDevice(world, 'mallory', 'tap');
  world.identities.hidden.add('bob');
  for (const asked of [['bob', 'mallory'], ['mallory'], ['bob', 'bob'], []]) {
    world.before.set('claimPrekeyBundles', ((request: ClaimPrekeyBundlesRequest) => {
      request.userIds = asked;
    }) as never);
    const made = alice.createConversation({ kind: 'direct', members: ['bob'] });
    await expect(made).rejects.toMatchObject({ name: 'SessionRefusedError', problem: 'roster' });
  }
  expect(world.sessions.size).toBe(0);
  world.before.clear();
  const { sessionId } = await alice.createConversation({ kind: 'direct', members: ['bob'] });
  expect(readersOf(world, sessionId)).toEqual(['alice laptop', 'bob laptop']);
});

test('a device that was seen revoked is not sealed to again, whatever a claim says', async () => {
  const { world, alice, conversationId } = await afterRevocation();
  world.identities.hidden.add('bob');
  unrevokeInClaims(world, { userId: 'bob', deviceId: 'stolen' });
  const refused = next(alice, 'deviceListRefused');
  await expect(alice.rotate(conversationId)).rejects.toThrow(DeviceListRefusedError);
  expect(await refused).toEqual({ userId: 'bob', problem: 'list', version: 3n, remembered: 3n });
  // A version that the log is not told up to changes nothing.
  unrevokeInClaims(world, { userId: 'bob', deviceId: 'stolen' }, ({ users }) => {
    for (const user of users) Object.assign(user, { deviceListVersion: 9n, logHead: new Uint8Array(32).fill(9) });
  });
  await expect(alice.rotate(conversationId)).rejects.toMatchObject({ problem: 'list', userId: 'bob' });
  expect(world.conversation(conversationId).epoch).toBe(2n);
});

test('a claim that is answered as it was before a revocation brings the device back no more', async () => {
  const { world, alice, conversationId } = await afterRevocation();
  world.identities.hidden.add('bob');
  const [, second] = world.identities.logOf('bob').entries;
  unrevokeInClaims(world, { userId: 'bob', deviceId: 'stolen' }, ({ users }) => {
    for (const user of users) Object.assign(user, { deviceListVersion: 2n, logHead: second?.hash });
  });
  const { sessionId, withheld } = await alice.rotate(conversationId);
  expect(readersOf(world, sessionId)).toEqual(['alice laptop', 'bob laptop']);
  expect(withheld).toEqual([{ device: { userId: 'bob', deviceId: 'stolen' }, reason: 'UNCERTIFIED' }]);
});

test('of a user whose log was seen and is told no more, only the devices that were seen are sealed to', async () => {
  const { world, alice, bob, conversationId } = await afterRevocation();
  await approvedDevice(world, bob, 'phone');
  world.identities.hidden.add('bob');
  const made = await alice.createConversation({ kind: 'direct', members: ['bob'] });
  expect(readersOf(world, made.sessionId)).toEqual(['alice laptop', 'bob laptop']);
  expect(made.withheld).toEqual([{ device: { userId: 'bob', deviceId: 'phone' }, reason: 'UNCERTIFIED' }]);
  // Now that the log is told, the device that came is one like the others.
  world.identities.hidden.clear();
  expect((await alice.rotate(conversationId)).withheld).toEqual([]);
});

test('a claim with other keys for a device than were seen is refused', async () => {
  const { world, alice, keyStore, conversationId } = await afterRevocation();
  world.identities.hidden.add('bob');
  onClaim(world, ({ results }) => withOtherKeys(keyStore, results[0]?.bundle));
  await expect(alice.rotate(conversationId)).rejects.toMatchObject({ problem: 'list', userId: 'bob' });
});

test('a claim whose head or root key is another one than the log says is refused', async () => {
  const { world, alice, conversationId } = await afterRevocation();
  const mallory = (await (await firstDevice(world, 'mallory')).rootKeyOf('mallory')) ?? new Uint8Array();
  world.identities.hidden.add('bob');
  const lies = { fork: { logHead: new Uint8Array(32).fill(9) }, list: { rootKey: mallory } };
  for (const [problem, lie] of Object.entries(lies)) {
    onClaim(world, ({ users }) => {
      for (const user of users) Object.assign(user, lie);
    });
    await expect(alice.rotate(conversationId)).rejects.toMatchObject({ problem, userId: 'bob' });
  }
});

test('two claims that name two heads for one version are a fork', async () => {
  const world = new World();
  const alice = await firstDevice(world, 'alice');
  await firstDevice(world, 'bob');
  world.identities.hidden.add('bob');
  const { conversationId } = await alice.createConversation({ kind: 'direct', members: ['bob'] });
  onClaim(world, ({ users }) => {
    for (const user of users) user.logHead = new Uint8Array(32).fill(9);
  });
  await expect(alice.rotate(conversationId)).rejects.toMatchObject({ problem: 'fork', userId: 'bob' });
});

test('the own devices are always told: without a list of them nothing is sealed', async () => {
  const world = new World();
  const alice = await firstDevice(world, 'alice');
  const { conversationId } = await alice.createConversation({ kind: 'group', members: [] });
  world.identities.hidden.add('alice');
  const claims = world.claims.length;
  await expect(alice.rotate(conversationId)).rejects.toMatchObject({ problem: 'rolled-back', userId: 'alice' });
  expect(world.claims.length).toBe(claims);
});

test('a holder re-seals to no device that it has seen revoked, though the list is told no more', async () => {
  const { world, alice, conversationId, sessionId } = await afterRevocation();
  world.identities.hidden.add('bob');
  const requester = { userId: 'bob', deviceId: 'stolen' };
  expect(await answerTo(world, alice, requester, [conversationId, sessionId])).toBe('NOT_ENTITLED');
});

test('a holder re-seals to a former contact by what it has seen, and to nobody else', async () => {
  const { world, alice, bob, keyStore, conversationId, sessionId } = await afterRevocation();
  await approvedDevice(world, bob, 'phone');
  world.identities.hidden.add('bob');
  const session: [string, string] = [conversationId, sessionId];
  const [laptop, phone] = ['laptop', 'phone'].map((deviceId) => ({ userId: 'bob', deviceId })) as [Ref, Ref];
  expect(await answerTo(world, alice, phone, session)).toBe('UNCERTIFIED');
  onClaim(world, ({ results }) => withOtherKeys(keyStore, results[0]?.bundle));
  expect(await answerTo(world, alice, laptop, session)).toBe('UNCERTIFIED');
  onClaim(world, () => {});
  expect(await answerTo(world, alice, laptop, session)).toBe('answered');
});

test("a holder re-seals to none of its user's devices without their list", async () => {
  const world = new World();
  const alice = await firstDevice(world, 'alice');
  await approvedDevice(world, alice, 'phone');
  const { conversationId, sessionId } = await alice.createConversation({ kind: 'group', members: [] });
  world.identities.hidden.add('alice');
  const requester = { userId: 'alice', deviceId: 'phone' };
  expect(await answerTo(world, alice, requester, [conversationId, sessionId])).toBe('UNCERTIFIED');
});

test('keys that the user certified under the same name, and that the log does not have, get no envelope', async () => {
  const world = new World();
  const keyStore = memoryKeyStore();
  const alice = await firstDevice(world, 'alice');
  await firstDevice(world, 'bob', 'laptop', { keyStore });
  onClaim(world, ({ results }) => withOtherKeys(keyStore, results[0]?.bundle));
  const { conversationId, sessionId, withheld } = await alice.createConversation({ kind: 'direct', members: ['bob'] });
  expect(readersOf(world, sessionId)).toEqual(['alice laptop']);
  expect(withheld).toEqual([{ device: { userId: 'bob', deviceId: 'laptop' }, reason: 'UNCERTIFIED' }]);
  const requester = { userId: 'bob', deviceId: 'laptop' };
  expect(await answerTo(world, alice, requester, [conversationId, sessionId])).toBe('UNCERTIFIED');
});

test('a bundle of another device than was claimed from is not sealed to', async () => {
  const world = new World();
  const alice = await firstDevice(world, 'alice');
  const bob = await firstDevice(world, 'bob');
  await approvedDevice(world, bob, 'tablet');
  const bundles = new Map<string, PrekeyBundle | undefined>();
  onClaim(world, ({ results }) => {
    for (const { device, bundle } of results) bundles.set(device?.deviceId ?? '', bundle);
    const tablet = bundles.get('tablet');
    for (const result of results) if (result.device?.deviceId === 'laptop' && tablet) result.bundle = tablet;
  });
  const uncertified = [{ device: { userId: 'bob', deviceId: 'laptop' }, reason: 'UNCERTIFIED' }];
  for (const hidden of [true, false]) {
    if (hidden) world.identities.hidden.add('bob');
    else world.identities.hidden.clear();
    const stranger = await firstDevice(world, hidden ? 'carol' : 'dave');
    const { withheld } = await stranger.createConversation({ kind: 'direct', members: ['bob'] });
    expect(withheld).toEqual(uncertified);
  }
  world.identities.hidden.add('bob');
  const { conversationId, sessionId } = await alice.createConversation({ kind: 'direct', members: ['bob'] });
  world.identities.hidden.clear();
  const requester = { userId: 'bob', deviceId: 'laptop' };
  expect(await answerTo(world, alice, requester, [conversationId, sessionId])).toBe('UNCERTIFIED');
});

test('of two first contacts under two root keys, only what the pinned one certifies is sealed to', async () => {
  const [world, elsewhere] = [new World(), new World()];
  const alice = await firstDevice(world, 'alice');
  await firstDevice(world, 'bob');
  await firstDevice(elsewhere, 'bob');
  world.identities.hidden.add('bob');
  const { identityKey, signingKey, certificate, signedPrekey, lastResortPrekey } = elsewhere.device('bob', 'laptop');
  const both = Promise.withResolvers<void>();
  let claims = 0;
  onClaim(world, async ({ users, results }) => {
    claims += 1;
    if (claims === 2) {
      for (const user of users) user.rootKey = elsewhere.identities.logOf('bob').rootKey;
      const keys = { identityKey, signingKey, certificate, signedPrekey, kemPrekey: lastResortPrekey };
      const kind = { kemPrekeyKind: PrekeyKind.LAST_RESORT, oneTimePrekey: undefined };
      for (const { bundle } of results) if (bundle) Object.assign(bundle, keys, kind);
      both.resolve();
    }
    await both.promise;
  });
  const create = () => alice.createConversation({ kind: 'direct', members: ['bob'] });
  const made = await Promise.all([create(), create()]);
  const readers = made.map(({ sessionId }) => readersOf(world, sessionId).length).sort();
  expect(readers).toEqual([1, 2]);
  const withheld = made.flatMap((each) => each.withheld);
  expect(withheld).toEqual([{ device: { userId: 'bob', deviceId: 'laptop' }, reason: 'ROOT_KEY_CHANGED' }]);
});

test('lists of other users than were asked for are refused', async () => {
  const world = new World();
  const alice = await firstDevice(world, 'alice');
  await firstDevice(world, 'bob');
  await firstDevice(world, 'mallory');
  for (const lie of ['mallory', 'alice']) {
    world.before.set('getDevices', ((request: { userIds: string[] }) => {
      request.userIds = request.userIds.map((userId) => (userId === 'bob' ? lie : userId));
    }) as never);
    const made = alice.createConversation({ kind: 'direct', members: ['bob'] });
    await expect(made).rejects.toThrow('other users than were asked for');
  }
  expect(world.sessions.size).toBe(0);
});
