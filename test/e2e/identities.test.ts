import { toBinary } from '@bufbuild/protobuf';
import type { Transport, UnaryResponse } from '@connectrpc/connect';
import {
  acceptSignedRootKeyChanges,
  type ClientEvents,
  type KeytrailClient,
  memoryKeyStore,
  RootKeyNotCurrentError,
} from '@keytrail/client';
import { nodePrimitives } from '@keytrail/client/node';
import { DeviceCertificateSchema, type GetDevicesResponse } from '@keytrail/contracts';
import { certifyDevice } from '@keytrail/crypto';
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { someone, startWorld, type World } from './world.ts';

let world: World;

beforeAll(async () => {
  world = await startWorld({ name: 'test-identities' });
});
afterAll(async () => {
  await world?.[Symbol.asyncDispose]();
});

/** Two users in a conversation, both online. */
async function pair(options: Parameters<World['online']>[2] = {}) {
  const [a, b] = [someone('alice'), someone('bob')];
  const alice = await world.online(a, 'phone', options);
  const bob = await world.online(b, 'phone');
  const { conversationId, sessionId } = await alice.createConversation({ kind: 'direct', members: [b] });
  await bob.openSession(conversationId, sessionId);
  return { a, b, alice, bob, conversationId, sessionId };
}

function next<Name extends keyof ClientEvents>(
  client: KeytrailClient,
  name: Name,
  fits: (event: ClientEvents[Name]) => boolean = () => true,
): Promise<ClientEvents[Name]> {
  return new Promise((resolve) => {
    const off = client.on(name, (event) => {
      if (!fits(event)) return;
      off();
      resolve(event);
    });
  });
}

/** A device whose server lies to it about device lists. */
function liedTo(user: string, device: string, lie: (answer: GetDevicesResponse) => void, like: Partial<Options>) {
  const honest = world.transportsOf(user, device);
  const identityKeys: Transport = {
    stream: honest.identityKeys.stream.bind(honest.identityKeys),
    async unary(method, ...rest) {
      const response = (await honest.identityKeys.unary(method, ...rest)) as UnaryResponse;
      if (method.name === 'GetDevices') lie(response.message as GetDevicesResponse);
      return response as never;
    },
  };
  return world.device(user, device, { ...like, transports: { ...honest, identityKeys } });
}

type Options = NonNullable<Parameters<World['device']>[2]>;

describe('a further device', () => {
  test('is linked by a code that is compared, and can read and approve then', async () => {
    const { a, alice, conversationId } = await pair();
    const tablet = world.device(a, 'tablet');
    const link = await tablet.createLinkRequest();
    const code = await tablet.linkCode(link);
    const wrong = code.startsWith('0') ? `1${code.slice(1)}` : `0${code.slice(1)}`;
    await expect(alice.approveDevice(link, wrong)).rejects.toMatchObject({ name: 'LinkCodeMismatchError' });
    await tablet.registerApproved(await alice.approveDevice(link, code));
    await tablet.attach();
    expect((await tablet.rotate(conversationId)).withheld).toEqual([]);
    await world.further(tablet, a, 'watch');
  });

  test('comes back by the recovery key when all are lost, and revokes what was lost', async () => {
    const { a, b, alice, bob, conversationId } = await pair();
    const text = await alice.makeRecoveryKey();
    await alice.close();
    await bob.rotate(conversationId);
    const anew = world.device(a, 'anew');
    await anew.recover(text);
    expect(await anew.rootKeyOf(a)).toEqual(await alice.rootKeyOf(a));
    const seen = next(bob, 'devicesChanged', ({ revoked }) => revoked.includes('phone'));
    await anew.revokeDevice('phone');
    await seen;
    const { sessionId, withheld } = await anew.rotate(conversationId);
    expect(withheld).toEqual([]);
    await bob.openSession(conversationId, sessionId);
    expect(await bob.safetyNumber(a)).toEqual(await anew.safetyNumber(b));
  });

  test('is not recovered after the root key changed', async () => {
    const { a, alice } = await pair();
    const text = await alice.makeRecoveryKey();
    await alice.changeRootKey();
    await expect(world.device(a, 'anew').recover(text)).rejects.toMatchObject({
      reason: 'NOT_FOUND_OR_NOT_PERMITTED',
    });
    const renewed = await alice.makeRecoveryKey();
    await world.device(a, 'anew').recover(renewed);
  });

  test('notices who approves it under another root key', async () => {
    const { a } = await pair();
    const tablet = world.device(a, 'tablet');
    const link = await tablet.createLinkRequest();
    const impostors = await startedElsewhere(a);
    const approval = await impostors.approveDevice(link, await tablet.linkCode(link));
    await expect(tablet.registerApproved(approval)).rejects.toThrow(RootKeyNotCurrentError);
  });
});

/** A device that passes itself off as the user's, certified by a root key of its own. */
async function startedElsewhere(user: string): Promise<KeytrailClient> {
  const keyStore = memoryKeyStore();
  await world.device(someone('twin'), 'phone', { keyStore }).register();
  const stored = await keyStore.device();
  if (stored?.rootKey === undefined) throw new Error('not registered');
  const named = { ...stored, userId: user, deviceId: 'impostor' };
  const keys = { ...named, identityKey: stored.identityKey.publicKey, signingKey: stored.signingKey.publicKey };
  const certificate = certifyDevice(nodePrimitives, stored.rootKey, keys, new Date());
  await keyStore.saveDevice({ ...named, certificate: toBinary(DeviceCertificateSchema, certificate) });
  return world.device(user, 'impostor', { keyStore });
}

describe('a change of the root key', () => {
  test('is told to every peer, with who signed it, and makes safety numbers other ones', async () => {
    const { a, b, alice, bob, conversationId } = await pair({ rootKeyPolicy: acceptSignedRootKeyChanges });
    const before = await alice.safetyNumber(b);
    expect(await bob.safetyNumber(a)).toEqual(before);
    const told = next(alice, 'rootKeyChanged');
    const { rootKey } = await bob.changeRootKey();
    expect(await told).toMatchObject({ userId: b, how: 'signed', accepted: true, offered: rootKey });
    const after = await alice.safetyNumber(b);
    expect(after.digits).not.toBe(before.digits);
    expect(await bob.compareSafetyNumber(a, after.qrText)).toBe('equal');
    const { sessionId } = await bob.rotate(conversationId);
    await alice.openSession(conversationId, sessionId);
  });

  test('revokes the devices that it leaves out, and asks the others to be linked again', async () => {
    const { b, alice, bob, conversationId } = await pair({ rootKeyPolicy: acceptSignedRootKeyChanges });
    const tablet = await world.further(bob, b, 'tablet');
    const stolen = await world.further(bob, b, 'stolen');
    await Promise.all([tablet.attach(), stolen.attach()]);
    const [revoked, told] = [next(stolen, 'revoked'), next(tablet, 'rootKeyChanged')];
    expect((await bob.changeRootKey({ keep: ['tablet'] })).revoked).toEqual(['stolen']);
    await revoked;
    expect(await told).toMatchObject({ userId: b, how: 'signed', accepted: false });
    const link = await tablet.createLinkRequest();
    await tablet.registerApproved(await bob.approveDevice(link, await tablet.linkCode(link)));
    const { sessionId, withheld } = await tablet.rotate(conversationId);
    expect(withheld).toEqual([]);
    await alice.openSession(conversationId, sessionId);
  });

  test('that nobody signed is a reset: told as that, and not accepted', async () => {
    const { b, alice, bob, conversationId } = await pair({ rootKeyPolicy: acceptSignedRootKeyChanges });
    const [revoked, told] = [next(bob, 'revoked'), next(alice, 'rootKeyChanged')];
    const anew = world.device(b, 'anew');
    await anew.resetIdentity();
    await revoked;
    const { offered } = await told.then((event) => {
      expect(event).toMatchObject({ userId: b, how: 'reset', accepted: false });
      return event;
    });
    const refused = await alice.rotate(conversationId);
    expect(refused.withheld).toEqual([{ device: { userId: b, deviceId: 'anew' }, reason: 'ROOT_KEY_CHANGED' }]);
    await alice.acceptRootKey(b, offered);
    const { sessionId, withheld } = await alice.rotate(conversationId);
    expect(withheld).toEqual([]);
    await anew.openSession(conversationId, sessionId);
  });
});

describe('a device that is revoked', () => {
  test('hears it, is detached, and gets no key of what is made after', async () => {
    const { b, alice, bob, conversationId } = await pair();
    const tablet = await world.further(bob, b, 'tablet');
    await tablet.attach();
    const revoked = next(tablet, 'revoked');
    const detached = next(tablet, 'state', ({ state }) => state === 'detached');
    const seen = next(alice, 'devicesChanged', (event) => event.revoked.includes('tablet'));
    await bob.revokeDevice('tablet');
    expect(await revoked).toEqual({ userId: b, deviceId: 'tablet' });
    await Promise.all([detached, seen]);
    const { sessionId, withheld } = await alice.rotate(conversationId);
    expect(withheld).toEqual([]);
    await expect(tablet.openSession(conversationId, sessionId)).rejects.toThrow();
    await expect(tablet.attach()).rejects.toMatchObject({ reason: 'DEVICE_REVOKED' });
  });
});

describe('a server that goes back on a device list', () => {
  test('is noticed when its database forgets a device', async () => {
    const { b, alice, bob, conversationId } = await pair();
    await world.further(bob, b, 'tablet');
    await alice.rotate(conversationId);
    const database = new pg.Client({ connectionString: world.constellation.databaseUrls['identity-keys'] });
    await database.connect();
    await database.query('ALTER TABLE users DISABLE TRIGGER USER');
    await database.query(
      `UPDATE users u SET device_list_version = 1, log_head = l.entry_hash
         FROM device_log l WHERE u.user_id = $1 AND l.user_id = u.user_id AND l.version = 1`,
      [b],
    );
    await database.query('ALTER TABLE users ENABLE TRIGGER USER');
    await database.end();
    const told = next(alice, 'deviceListRefused');
    await expect(alice.rotate(conversationId)).rejects.toMatchObject({ problem: 'rolled-back' });
    expect(await told).toEqual({ userId: b, problem: 'rolled-back', version: 1n, remembered: 2n });
  });

  test('is noticed when it tells one client another history than before, also after that was started again', async () => {
    const keyStore = memoryKeyStore();
    const { a, b, alice, conversationId } = await pair({ keyStore });
    await alice.rotate(conversationId);
    await alice.close();
    const forking = ({ deviceLists }: GetDevicesResponse) => {
      for (const list of deviceLists) if (list.userId === b) list.logHead = new Uint8Array(32).fill(1);
    };
    const again = liedTo(a, 'phone', forking, { keyStore });
    await expect(again.rotate(conversationId)).rejects.toMatchObject({ problem: 'fork', userId: b });
  });
});
