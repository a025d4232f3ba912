import { clone, create } from '@bufbuild/protobuf';
import {
  type Conversation,
  HistoryPolicy,
  MemberRole,
  type RosterEntry,
  RosterEntrySchema,
  type SignedRosterChange,
} from '@keytrail/contracts';
import { rosterBaseText, rosterEntryHash, signRosterChange } from '@keytrail/crypto';
import { nodePrimitives } from '@keytrail/crypto/node';
import { expect, test } from 'vitest';
import { type KeytrailClient, memoryKeyStore, RosterRefusedError } from '../src/index.ts';
import { clientOf, firstDevice, next } from './people.ts';
import { World } from './world.ts';

const adminsOnly = { addMembers: MemberRole.ADMIN, removeMembers: MemberRole.ADMIN, changePolicy: MemberRole.ADMIN };

/** alice's group with bob; mallory has a device and is in nothing. */
async function stage() {
  const world = new World();
  const aliceStore = memoryKeyStore();
  const alice = await firstDevice(world, 'alice', 'laptop', { keyStore: aliceStore });
  const bobStore = memoryKeyStore();
  const bob = await firstDevice(world, 'bob', 'laptop', { keyStore: bobStore });
  await firstDevice(world, 'mallory');
  const { conversationId } = await alice.createConversation({ kind: 'group', members: ['bob'] });
  return { world, alice, aliceStore, bob, bobStore, conversationId };
}

function change(world: World, conversationId: string, altered: Partial<Conversation>): void {
  world.conversations.set(conversationId, { ...world.conversation(conversationId), ...altered });
}

function withMember(world: World, conversationId: string, userId: string): Partial<Conversation> {
  const { members } = world.conversation(conversationId);
  const [first] = members as [Conversation['members'][number]];
  return { members: [...members, { ...first, userId, role: MemberRole.MEMBER }] };
}

/** Puts an entry behind the log, with the hash that it must have, and lets the conversation name it. */
function append(
  world: World,
  conversationId: string,
  content: Partial<Pick<RosterEntry, 'signedChange' | 'erasedUserId'>>,
) {
  const log = world.rosters.log(conversationId);
  const last = log.at(-1) as RosterEntry;
  const entry = create(RosterEntrySchema, { rosterVersion: last.rosterVersion + 1n, ...content });
  entry.hash = rosterEntryHash({ conversationId, previousHash: last.hash }, entry);
  log.push(entry);
  change(world, conversationId, { rosterVersion: entry.rosterVersion, rosterHead: entry.hash });
}

async function refusedWith(client: KeytrailClient, work: () => Promise<unknown>): Promise<string> {
  const told = next(client, 'rosterRefused');
  const error = await work().catch((thrown: unknown) => thrown);
  expect(error).toBeInstanceOf(RosterRefusedError);
  const { problem } = await told;
  expect(error).toMatchObject({ conversationId: expect.any(String), problem });
  return problem;
}

const sealedToMallory = (world: World) =>
  [...world.sessions.values()].some(({ envelopes }) => envelopes.has('mallory laptop'));

test('a member whom the server adds without a signed change gets no key', async () => {
  const { world, alice, conversationId } = await stage();
  change(world, conversationId, withMember(world, conversationId, 'mallory'));
  expect(await refusedWith(alice, () => alice.rotate(conversationId))).toBe('roster');
  change(world, conversationId, { rosterVersion: 2n });
  expect(await refusedWith(alice, () => alice.rotate(conversationId))).toBe('version');
  expect([world.sessions.size, sealedToMallory(world)]).toEqual([1, false]);
});

test('a change that somebody else than a member signed, or under another name, gets nobody into the roster', async () => {
  const { world, alice, aliceStore, bob, conversationId } = await stage();
  const device = await aliceStore.device();
  const [version1] = world.rosters.log(conversationId) as [RosterEntry];
  const signedChange = version1.signedChange as SignedRosterChange;
  if (!device || !signedChange.authorCertificate) throw new Error('alice is registered');
  const forge = (userId: string) =>
    signRosterChange(
      nodePrimitives,
      {
        ...{ userId, deviceId: 'laptop', certificate: signedChange.authorCertificate as never },
        identityKey: device.identityKey,
        signingKey: nodePrimitives.ed25519.keyPair(),
      },
      {
        ...{ conversationId, rosterVersion: 2n, previousHash: version1.hash, madeAt: new Date() },
        added: [{ userId: 'mallory', role: MemberRole.MEMBER }],
      },
    );
  for (const userId of ['alice', 'mallory']) {
    append(world, conversationId, { signedChange: forge(userId) });
    change(world, conversationId, withMember(world, conversationId, 'mallory'));
    expect(await refusedWith(alice, () => alice.rotate(conversationId))).toBe('certificate');
    expect(await refusedWith(bob, () => bob.rotate(conversationId))).toBe('certificate');
    world.rosters.log(conversationId).pop();
    change(world, conversationId, {
      rosterVersion: 1n,
      rosterHead: version1.hash,
      members: world.rosters.said(conversationId).members,
    });
  }
  expect(sealedToMallory(world)).toBe(false);
  expect((await alice.rotate(conversationId)).epoch).toBe(2n);
});

test('an erasure takes somebody out, and cannot be turned into an addition', async () => {
  const { world, alice, conversationId } = await stage();
  const { permissions: _, ...said } = world.rosters.append(conversationId, { erasedUserId: 'bob' });
  change(world, conversationId, said);
  expect((await alice.rotate(conversationId)).members.map(({ userId }) => userId)).toEqual(['alice']);
  append(world, conversationId, { erasedUserId: 'mallory' });
  expect(await refusedWith(alice, () => alice.rotate(conversationId))).toBe('member');
});

test('a server that goes back to an older roster is refused, also after a restart', async () => {
  const { world, alice, aliceStore, conversationId } = await stage();
  const before = world.conversation(conversationId);
  await alice.removeMembers(conversationId, ['bob']);
  await alice.rotate(conversationId);
  const after = world.conversation(conversationId);
  const { rosterVersion, rosterHead, members } = before;
  change(world, conversationId, { rosterVersion, rosterHead, members });
  world.rosters.log(conversationId).pop();
  expect(await refusedWith(alice, () => alice.rotate(conversationId))).toBe('rolled-back');
  const again = clientOf(world, 'alice', 'laptop', { keyStore: aliceStore });
  expect(await refusedWith(again, () => again.rotate(conversationId))).toBe('rolled-back');
  expect(world.conversation(conversationId).epoch).toBe(after.epoch);
});

test('a log that forks from what was seen, or leaves an entry out, is refused', async () => {
  const { world, alice, bob, conversationId } = await stage();
  await alice.changePolicy(conversationId, { permissions: { addMembers: 'member' } });
  await alice.changePolicy(conversationId, { historyPolicy: 'shared' });
  const log = world.rosters.log(conversationId);
  const [first, second, third] = log as [RosterEntry, RosterEntry, RosterEntry];
  world.rosters.logs.set(conversationId, [first, third]);
  expect(await refusedWith(bob, () => bob.rotate(conversationId))).toBe('version');
  world.rosters.logs.set(conversationId, [first, second]);
  expect(await refusedWith(bob, () => bob.rotate(conversationId))).toBe('version');
  world.rosters.logs.set(conversationId, log);
  expect((await bob.rotate(conversationId)).historyPolicy).toBe(HistoryPolicy.SHARED);
  const other = clone(RosterEntrySchema, third);
  other.hash = rosterEntryHash({ conversationId, previousHash: first.hash }, other);
  world.rosters.logs.set(conversationId, [first, second, other]);
  change(world, conversationId, { rosterHead: other.hash });
  expect(await refusedWith(bob, () => bob.rotate(conversationId))).toBe('fork');
});

test('a session whose header names another roster than the signed one is not believed', async () => {
  const { world, bob, conversationId } = await stage();
  const { sessionId } = world.conversation(conversationId);
  const dave = await firstDevice(world, 'dave');
  const forged = world.rosters.log(conversationId)[0] as RosterEntry;
  const entry = clone(RosterEntrySchema, forged);
  // Another conversation's roster, signed by the same member, is no roster of this one.
  const { conversationId: elsewhere } = await dave.createConversation({ kind: 'group', members: ['bob'] });
  world.rosters.logs.set(conversationId, world.rosters.log(elsewhere));
  expect(await refusedWith(bob, () => bob.openSession(conversationId, sessionId))).not.toBe('none');
  world.rosters.logs.set(conversationId, [entry]);
  expect((await bob.openSession(conversationId, sessionId)).origin).toBe('read');
});

test('roles and permissions are what members signed, and a member who was first leaves the rest to be signed anew', async () => {
  const { world, alice, bob, conversationId } = await stage();
  await alice.changeRoles(conversationId, { bob: 'admin' });
  let raced = false;
  world.before.set('addMembers', async () => {
    if (raced) return;
    raced = true;
    await bob.addMembers(conversationId, ['mallory']);
  });
  await firstDevice(world, 'dave');
  const { members } = await alice.addMembers(conversationId, ['mallory', 'dave']);
  expect(members.map(({ userId, role }) => `${userId} ${role}`)).toEqual(['alice 1', 'bob 1', 'dave 2', 'mallory 2']);
  expect(world.rosters.state(conversationId).version).toBe(4n);
  expect((await alice.removeMembers(conversationId, ['nobody'])).rosterVersion).toBe(4n);
});

test('only what is new of a log is fetched', async () => {
  const { world, alice, bob, conversationId } = await stage();
  const asked: bigint[] = [];
  world.before.set('listRosterChanges', ({ afterVersion }: { afterVersion: bigint }) => void asked.push(afterVersion));
  await bob.openSession(conversationId);
  for (let i = 0; i < 3; i += 1) {
    await alice.changePolicy(conversationId, { permissions: { addMembers: i % 2 === 0 ? 'member' : 'admin' } });
  }
  asked.length = 0;
  await bob.rotate(conversationId);
  await bob.rotate(conversationId);
  expect(asked).toEqual([1n]);
});

test('a roster from before rosters were signed is believed where the application says so, once', async () => {
  const { world, bob, bobStore, conversationId } = await stage();
  const { members, historyPolicy } = world.rosters.state(conversationId);
  const base = create(RosterEntrySchema, {
    rosterVersion: 1n,
    base: rosterBaseText({ members, permissions: adminsOnly, historyPolicy }),
  });
  base.hash = rosterEntryHash({ conversationId, previousHash: new Uint8Array() }, base);
  world.rosters.logs.set(conversationId, [base]);
  change(world, conversationId, { rosterHead: base.hash });
  expect(await refusedWith(bob, () => bob.openSession(conversationId))).toBe('unsigned');
  const trusting = clientOf(world, 'bob', 'laptop', { unsignedRosters: 'first-use', keyStore: bobStore });
  expect((await trusting.openSession(conversationId)).origin).toBe('read');
  const again = create(RosterEntrySchema, { rosterVersion: 2n, base: base.base });
  again.hash = rosterEntryHash({ conversationId, previousHash: base.hash }, again);
  world.rosters.log(conversationId).push(again);
  change(world, conversationId, { rosterVersion: 2n, rosterHead: again.hash });
  expect(await refusedWith(trusting, () => trusting.rotate(conversationId))).toBe('version');
});
