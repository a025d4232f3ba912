import { timestampFromMs } from '@bufbuild/protobuf/wkt';
import type {
  ClaimPrekeyBundlesResponse,
  DeviceCertificate,
  GetDevicesResponse,
  GetInitialSessionResponse,
  ListDeviceLogResponse,
} from '@keytrail/contracts';
import { NotificationKind } from '@keytrail/contracts';
import { refuse } from '@keytrail/rpc/refusal';
import { expect, test } from 'vitest';
import { DeviceLogWriter } from '../../crypto/test/device-log-writer.ts';
import {
  acceptSignedRootKeyChanges,
  type ClientEvents,
  DeviceListRefusedError,
  LinkCodeMismatchError,
  memoryKeyStore,
  RootKeyNotCurrentError,
  RootKeyUnknownError,
} from '../src/index.ts';
import { approvedDevice, clientOf, firstDevice, next } from './people.ts';
import { World } from './world.ts';

/** Alice and bob, in a conversation, so that alice has seen bob's log. */
async function acquainted(options: Parameters<typeof firstDevice>[3] = {}) {
  const world = new World();
  const alice = await firstDevice(world, 'alice', 'laptop', options);
  const bob = await firstDevice(world, 'bob');
  const { conversationId } = await alice.createConversation({ kind: 'direct', members: ['bob'] });
  return { world, alice, bob, conversationId };
}

function listOf(answer: GetDevicesResponse, userId: string) {
  const list = answer.deviceLists.find((each) => each.userId === userId);
  if (!list) throw new Error(`${userId} was not asked for`);
  return list;
}

test('a link is approved only with the code that the new device shows', async () => {
  const world = new World();
  const alice = await firstDevice(world, 'alice');
  const phone = clientOf(world, 'alice', 'phone');
  const exchanged = clientOf(world, 'alice', 'phone');
  const link = await phone.createLinkRequest();
  const code = await phone.linkCode(link);
  expect(await alice.linkCode(link)).toBe(code);
  // Somebody on the way put another request in: the person compares with what the phone shows.
  await expect(alice.approveDevice(await exchanged.createLinkRequest(), code)).rejects.toThrow(LinkCodeMismatchError);
  await expect(alice.approveDevice(link, '')).rejects.toThrow(LinkCodeMismatchError);
  await phone.registerApproved(await alice.approveDevice(link, code.replaceAll(' ', '')));
  expect(world.devices.get('alice')?.map(({ deviceId }) => deviceId)).toEqual(['laptop', 'phone']);
});

test('an approval by somebody with another root key is noticed before anything of it is used', async () => {
  const [world, elsewhere] = [new World(), new World()];
  await firstDevice(world, 'alice');
  // Who saw the request, has it answered under a root key of their own.
  const impostor = await firstDevice(elsewhere, 'alice', 'impostor');
  const phone = clientOf(world, 'alice', 'phone');
  const link = await phone.createLinkRequest();
  const approval = await impostor.approveDevice(link, await phone.linkCode(link));
  const refused = await phone.registerApproved(approval).catch((error: Error) => error.name);
  expect(refused).toBe('RootKeyNotCurrentError');
  expect(world.count('registerDevice')).toBe(1);
});

test('who has lost every device comes back by the recovery key, and typos are told', async () => {
  const world = new World();
  const lost = await firstDevice(world, 'alice', 'lost');
  const text = await lost.makeRecoveryKey();
  const anew = clientOf(world, 'alice', 'anew');
  const typo = (text[0] === 'A' ? 'B' : 'A') + text.slice(1);
  await expect(anew.recover(typo)).rejects.toMatchObject({ problem: 'group', group: 1 });
  await anew.recover(text.toLowerCase());
  expect(await anew.rootKeyOf('alice')).toEqual(await lost.rootKeyOf('alice'));
  await anew.revokeDevice('lost');
  expect(world.device('alice', 'lost').revokedAt).toBeDefined();
  const other = await (await firstDevice(world, 'bob')).makeRecoveryKey();
  await expect(clientOf(world, 'alice', 'third').recover(other)).rejects.toThrow('recovery: decrypt');
});

test('a recovery that was kept from before a change of the root key is not taken for it', async () => {
  const world = new World();
  const alice = await firstDevice(world, 'alice');
  const text = await alice.makeRecoveryKey();
  const old = world.identities.recoveries.get('alice');
  await alice.changeRootKey();
  await expect(clientOf(world, 'alice', 'phone').recover(text)).rejects.toMatchObject({
    reason: 'NOT_FOUND_OR_NOT_PERMITTED',
  });
  if (old) world.identities.recoveries.set('alice', old);
  await expect(clientOf(world, 'alice', 'phone').recover(text)).rejects.toThrow(RootKeyNotCurrentError);
});

test('safety numbers agree on both sides, and no more after a change of the root key', async () => {
  const { alice, bob } = await acquainted();
  const [ofAlice, ofBob] = [await alice.safetyNumber('bob'), await bob.safetyNumber('alice')];
  expect(ofAlice).toEqual(ofBob);
  expect(await alice.compareSafetyNumber('bob', ofBob.qrText)).toBe('equal');
  await bob.changeRootKey();
  const changed = await bob.safetyNumber('alice');
  expect(changed.digits).not.toBe(ofBob.digits);
  expect(await alice.compareSafetyNumber('bob', changed.digits)).toBe('different');
  await expect(alice.safetyNumber('nobody')).rejects.toThrow(RootKeyUnknownError);
});

test('a signed change of the root key is told as that, and accepted where the application says so', async () => {
  const { world, alice, bob, conversationId } = await acquainted({ rootKeyPolicy: acceptSignedRootKeyChanges });
  const changed = next(alice, 'rootKeyChanged');
  const { rootKey } = await bob.changeRootKey();
  expect((await alice.rotate(conversationId)).withheld).toEqual([]);
  expect(await changed).toMatchObject({ userId: 'bob', how: 'signed', accepted: true, offered: rootKey });
  const reset = next(alice, 'rootKeyChanged');
  await clientOf(world, 'bob', 'anew').resetIdentity();
  expect((await alice.rotate(conversationId)).withheld).toMatchObject([{ reason: 'ROOT_KEY_CHANGED' }]);
  expect(await reset).toMatchObject({ userId: 'bob', how: 'reset', accepted: false });
});

test('a root key in an envelope is looked up in the log, so that its change is told as what it is', async () => {
  const { alice, bob, conversationId } = await acquainted({ rootKeyPolicy: acceptSignedRootKeyChanges });
  await bob.changeRootKey();
  const { sessionId } = await bob.rotate(conversationId);
  const changed = next(alice, 'rootKeyChanged');
  expect((await alice.openSession(conversationId, sessionId)).initiator.userId).toBe('bob');
  expect(await changed).toMatchObject({ how: 'signed', accepted: true });
});

test('devices that a change of the root key leaves out are revoked; those that stay are linked again', async () => {
  const world = new World();
  const alice = await firstDevice(world, 'alice');
  const phone = await approvedDevice(world, alice, 'phone');
  await approvedDevice(world, alice, 'stolen');
  const told = next(phone, 'rootKeyChanged');
  const { rootKey, revoked } = await alice.changeRootKey({ keep: ['phone'] });
  expect(revoked).toEqual(['stolen']);
  // The phone may be in the hands of whoever changed it: it believes nobody until it is linked again.
  await expect(phone.createConversation({ kind: 'group', members: [] })).rejects.toThrow('session refused');
  expect(await told).toMatchObject({ userId: 'alice', how: 'signed', accepted: false });
  const link = await phone.createLinkRequest();
  await phone.registerApproved(await alice.approveDevice(link, await phone.linkCode(link)));
  expect(await phone.rootKeyOf('alice')).toEqual(rootKey);
  expect((await phone.createConversation({ kind: 'group', members: [] })).withheld).toEqual([]);
  await approvedDevice(world, phone, 'watch');
});

test('a change of the root key that was not answered is sent again as it was', async () => {
  const world = new World();
  const keyStore = memoryKeyStore();
  const alice = await firstDevice(world, 'alice', 'laptop', { keyStore, retry: { retries: 0 } });
  world.after.set('changeRootKey', () => {
    world.after.delete('changeRootKey');
    throw refuse('SHUTTING_DOWN', 'draining');
  });
  await expect(alice.changeRootKey()).rejects.toThrow('SHUTTING_DOWN');
  const { rootKey } = await clientOf(world, 'alice', 'laptop', { keyStore }).changeRootKey();
  expect(world.identities.logOf('alice').rootKey).toEqual(rootKey);
  expect(world.identities.logOf('alice').version).toBe(3n);
});

test('a list that changes under a change of the root key costs one more try, and no more', async () => {
  const world = new World();
  const alice = await firstDevice(world, 'alice');
  await approvedDevice(world, alice, 'phone');
  world.before.set('changeRootKey', () => {
    world.before.delete('changeRootKey');
    world.identities.revoke('alice', 'phone');
  });
  const { revoked } = await alice.changeRootKey();
  expect([revoked, world.count('changeRootKey')]).toEqual([[], 2]);
  world.before.set('changeRootKey', () => {
    throw refuse('DEVICE_LIST_CONFLICT', 'again');
  });
  await expect(alice.changeRootKey()).rejects.toMatchObject({ reason: 'DEVICE_LIST_CONFLICT' });
  expect(world.count('changeRootKey')).toBe(4);
});

test('the log is asked for only when version or head are other ones than remembered', async () => {
  const { world, alice, conversationId } = await acquainted();
  const asked = world.count('listDeviceLog');
  await alice.rotate(conversationId);
  await alice.rotate(conversationId);
  expect(world.count('listDeviceLog')).toBe(asked);
  await approvedDevice(world, await firstDevice(world, 'carol'), 'phone');
  await alice.rotate(conversationId);
  world.identities.revoke('bob', 'laptop');
  const before = world.count('listDeviceLog');
  await alice.rotate(conversationId);
  expect(world.count('listDeviceLog')).toBe(before + 1);
});

test('a long log is read in parts', async () => {
  const { world, alice, bob, conversationId } = await acquainted();
  await approvedDevice(world, bob, 'phone');
  await bob.changeRootKey();
  world.identities.entriesPerAnswer = 1;
  await alice.rotate(conversationId);
  const { version } = world.identities.logOf('bob');
  const events: ClientEvents['devicesChanged'][] = [];
  alice.on('devicesChanged', (event) => events.push(event));
  world.identities.revoke('bob', 'phone');
  await alice.rotate(conversationId);
  expect(events).toEqual([{ userId: 'bob', version: version + 1n, added: [], revoked: ['phone'] }]);
});

test('a list that goes back is refused and told, also by a device that was started again', async () => {
  const keyStore = memoryKeyStore();
  const { world, alice, bob, conversationId } = await acquainted({ keyStore });
  await approvedDevice(world, bob, 'phone');
  await alice.rotate(conversationId);
  world.after.set('getDevices', ((answer: GetDevicesResponse) => {
    const list = listOf(answer, 'bob');
    const [first] = world.identities.logOf('bob').entries;
    list.version = 1n;
    list.logHead = first?.hash ?? new Uint8Array();
    list.devices = list.devices.slice(0, 1);
  }) as never);
  for (const client of [alice, clientOf(world, 'alice', 'laptop', { keyStore })]) {
    const told = next(client, 'deviceListRefused');
    await expect(client.rotate(conversationId)).rejects.toMatchObject({ problem: 'rolled-back', userId: 'bob' });
    expect(await told).toEqual({ userId: 'bob', problem: 'rolled-back', version: 1n, remembered: 2n });
  }
});

test('another history at the same version, and one that goes on from another, are refused as forks', async () => {
  const { world, alice, conversationId } = await acquainted();
  const whole = world.identities.logOf('bob');
  const forked = new DeviceLogWriter('bob');
  forked.write({ ...whole.entries[0], previousHash: forked.head, recordedAt: timestampFromMs(1_000) });
  world.identities.logs.set('bob', forked);
  await expect(alice.rotate(conversationId)).rejects.toMatchObject({ problem: 'fork' });
  world.identities.revoke('bob', 'laptop');
  await expect(alice.rotate(conversationId)).rejects.toMatchObject({ problem: 'chain' });
  world.identities.logs.set('bob', whole);
  world.device('bob', 'laptop').revokedAt = undefined as never;
  await alice.rotate(conversationId);
});

test('a list that says other than its log is refused, in what it adds, leaves out and exchanges', async () => {
  const { world, alice, conversationId } = await acquainted();
  await firstDevice(world, 'mallory');
  const lies: ((answer: GetDevicesResponse) => void)[] = [
    (answer) => listOf(answer, 'bob').devices.push({ ...world.device('mallory', 'laptop'), userId: 'bob' }),
    (answer) => listOf(answer, 'bob').devices.pop(),
    (answer) => Object.assign(listOf(answer, 'bob'), { rootKey: world.identities.logOf('mallory').rootKey }),
    (answer) => {
      const list = listOf(answer, 'bob');
      list.devices = list.devices.map((device) => ({ ...device, identityKey: device.signingKey }));
    },
  ];
  for (const lie of lies) {
    world.after.set('getDevices', lie as never);
    await expect(alice.rotate(conversationId)).rejects.toMatchObject({ problem: 'list', userId: 'bob' });
  }
  expect(world.conversation(conversationId).epoch).toBe(1n);
});

test('a log that ends before the list that it belongs to is refused', async () => {
  const { world, alice, bob, conversationId } = await acquainted();
  await approvedDevice(world, bob, 'phone');
  world.after.set('listDeviceLog', ((answer: ListDeviceLogResponse) => {
    for (const log of answer.deviceLogs) log.entries = [];
  }) as never);
  await expect(alice.rotate(conversationId)).rejects.toMatchObject({ problem: 'version' });
});

test('the head that registration named must be in the log', async () => {
  const world = new World();
  world.after.set('registerDevice', ((answer: { logHead: Uint8Array }) => {
    answer.logHead = new Uint8Array(32).fill(7);
  }) as never);
  const alice = await firstDevice(world, 'alice');
  await expect(alice.createConversation({ kind: 'group', members: [] })).rejects.toThrow(DeviceListRefusedError);
});

test('a list that another call overtook is asked for again, and taken for no rollback', async () => {
  const { world, alice, bob, conversationId } = await acquainted();
  const reached = Promise.withResolvers<void>();
  const released = Promise.withResolvers<void>();
  let held = false;
  world.after.set('getDevices', (async () => {
    if (held) return;
    held = true;
    reached.resolve();
    await released.promise;
  }) as never);
  const rotated = alice.rotate(conversationId);
  await reached.promise;
  await approvedDevice(world, bob, 'phone');
  await alice.createConversation({ kind: 'group', members: ['bob'] });
  released.resolve();
  expect((await rotated).withheld).toEqual([]);
  const { envelopes } = world.session(world.conversation(conversationId).sessionId);
  expect(envelopes.has('bob phone')).toBe(true);
});

/** Bob shows alice, who never met bob, a session; `told` are the certificates that the server exchanges the root key in. */
async function firstShown(told: (answer: GetInitialSessionResponse) => (DeviceCertificate | undefined)[]) {
  const world = new World();
  const [alice, bob] = [await firstDevice(world, 'alice'), await firstDevice(world, 'bob')];
  const forged = (await (await firstDevice(world, 'mallory')).rootKeyOf('mallory')) ?? new Uint8Array();
  const trueOne = (await bob.rootKeyOf('bob')) ?? new Uint8Array();
  const { conversationId, sessionId } = await bob.createConversation({ kind: 'direct', members: ['alice'] });
  const tell = (rootKey: Uint8Array) =>
    world.after.set('getInitialSession', ((answer: GetInitialSessionResponse) => {
      for (const certificate of told(answer)) if (certificate) certificate.rootKey = rootKey;
    }) as never);
  tell(forged);
  await expect(alice.openSession(conversationId, sessionId)).rejects.toMatchObject({ problem: 'certificate' });
  expect(await alice.rootKeyOf('bob')).toBeUndefined();
  tell(trueOne);
  await alice.openSession(conversationId, sessionId);
  expect(await alice.rootKeyOf('bob')).toEqual(trueOne);
}

test('a root key of the initiator is not pinned before something that it signed was verified', async () => {
  await firstShown(({ initiatorCertificate }) => [initiatorCertificate]);
});

test('a root key of initiator and sealer is not pinned before something that it signed was verified', async () => {
  const both = (answer: GetInitialSessionResponse) => [answer.initiatorCertificate, answer.envelope?.sealerCertificate];
  await firstShown(both);
});

test('a first contact is pinned by what was claimed, and its log must fit what was told then', async () => {
  const world = new World();
  const [alice, bob] = [await firstDevice(world, 'alice'), await firstDevice(world, 'bob')];
  world.identities.hidden.add('bob');
  const { conversationId, sessionId, withheld } = await alice.createConversation({ kind: 'direct', members: ['bob'] });
  expect([withheld, await alice.rootKeyOf('bob')]).toEqual([[], await bob.rootKeyOf('bob')]);
  expect((await bob.openSession(conversationId, sessionId)).initiator.userId).toBe('alice');
  // Now that they share a conversation the log is told, and it is another one.
  const forked = new DeviceLogWriter('bob');
  const [entry] = world.identities.logOf('bob').entries;
  forked.write({ ...entry, previousHash: forked.head, recordedAt: timestampFromMs(1_000) });
  const told = world.identities.logOf('bob');
  world.identities.hidden.clear();
  world.identities.logs.set('bob', forked);
  await expect(alice.rotate(conversationId)).rejects.toMatchObject({ problem: 'fork', userId: 'bob' });
  world.identities.logs.set('bob', told);
  expect((await alice.rotate(conversationId)).withheld).toEqual([]);
});

test('a first contact whose devices no root key certifies is not pinned, and nothing is sealed to it', async () => {
  const world = new World();
  const alice = await firstDevice(world, 'alice');
  await firstDevice(world, 'bob');
  const mallory = await firstDevice(world, 'mallory');
  world.identities.hidden.add('bob');
  const rootKey = (await mallory.rootKeyOf('mallory')) ?? new Uint8Array();
  world.after.set('claimPrekeyBundles', ((answer: ClaimPrekeyBundlesResponse) => {
    for (const user of answer.users) user.rootKey = rootKey;
  }) as never);
  const { withheld } = await alice.createConversation({ kind: 'direct', members: ['bob'] });
  expect(withheld).toEqual([{ device: { userId: 'bob', deviceId: 'laptop' }, reason: 'UNCERTIFIED' }]);
  expect(await alice.rootKeyOf('bob')).toBeUndefined();
});

test('a notification about devices is looked into, and told', async () => {
  const { world, alice, bob } = await acquainted();
  await alice.attach();
  const changed = next(alice, 'devicesChanged');
  const rootKeyChanged = next(alice, 'rootKeyChanged');
  const { rootKey } = await bob.changeRootKey();
  world.streams.get('alice laptop')?.push({ kind: NotificationKind.DEVICES_CHANGED, userId: 'bob' });
  expect(await changed).toEqual({ userId: 'bob', version: 3n, added: [], revoked: [] });
  expect(await rootKeyChanged).toMatchObject({ userId: 'bob', how: 'signed', accepted: false, offered: rootKey });
  await alice.close();
});

test('a device that is revoked says so once, and stays away, however it hears of it', async () => {
  const refusal = () => refuse('DEVICE_REVOKED', 'revoked', { metadata: { device_id: 'phone' } });
  const ways: ((world: World, phone: Awaited<ReturnType<typeof firstDevice>>) => Promise<unknown> | undefined)[] = [
    async (world) => world.streams.get('alice phone')?.end(refusal()),
    (world, phone) => {
      world.before.set('getConversation', () => {
        throw refusal();
      });
      return phone.getConversation('any').catch(() => {});
    },
    async (world) => {
      world.identities.revoke('alice', 'phone');
      world.streams.get('alice phone')?.push({ kind: NotificationKind.DEVICES_CHANGED, userId: 'alice' });
    },
    (_world, phone) => phone.revokeDevice('phone'),
  ];
  for (const hears of ways) {
    const world = new World();
    const alice = await firstDevice(world, 'alice');
    const phone = await approvedDevice(world, alice, 'phone');
    let told = 0;
    phone.on('revoked', () => told++);
    await phone.attach();
    // The phone knows its own list, and so what changes in it.
    await phone.createConversation({ kind: 'group', members: [] });
    const revoked = next(phone, 'revoked');
    const detached = new Promise<void>((resolve) =>
      phone.on('state', ({ state }) => state === 'detached' && resolve()),
    );
    await hears(world, phone);
    expect(await revoked).toEqual({ userId: 'alice', deviceId: 'phone' });
    await detached;
    expect([told, phone.isAttached]).toEqual([1, false]);
    await phone.close();
  }
});

test('a root key that a person compared stands for itself: a history that leads elsewhere is begun anew', async () => {
  const { world, alice, conversationId } = await acquainted();
  const pinned = await alice.rootKeyOf('bob');
  // Erased, and back again later: the log begins anew.
  world.identities.logs.delete('bob');
  world.devices.delete('bob');
  const anew = await firstDevice(world, 'bob', 'anew');
  await expect(alice.rotate(conversationId)).rejects.toThrow(DeviceListRefusedError);
  const rootKey = (await anew.rootKeyOf('bob')) ?? new Uint8Array();
  expect(rootKey).not.toEqual(pinned);
  await alice.acceptRootKey('bob', rootKey);
  expect((await alice.rotate(conversationId)).withheld).toEqual([]);
});
