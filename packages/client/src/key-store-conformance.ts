import type { Ref, RosterState } from '@keytrail/crypto';
import { equalBytes } from './bytes.ts';
import type {
  KeyStore,
  StoredDevice,
  StoredDeviceLog,
  StoredOutgoing,
  StoredPrekey,
  StoredReceived,
  StoredSession,
  StoredUnread,
  StoredWantedKey,
} from './key-store.ts';

export interface ConformanceCheck {
  readonly name: string;
  /** Throws when the store does not conform. */
  run(): Promise<void>;
}

/** How the stores to check are come by. */
export interface StoresToCheck {
  /** An empty store, each time another one. */
  open(): KeyStore | Promise<KeyStore>;
  /** Closes a store and opens what it kept; without it nothing is said about what outlives a process. */
  reopen?(store: KeyStore): KeyStore | Promise<KeyStore>;
}

/** What every key store must do, for any test runner and any platform. */
export function keyStoreConformance(stores: StoresToCheck): ConformanceCheck[] {
  const check = (name: string, work: (store: KeyStore) => Promise<void>): ConformanceCheck => ({
    name,
    run: async () => work(await stores.open()),
  });
  return [
    check('is empty at first', async (store) => {
      expect((await store.device()) === undefined, 'device');
      expect((await store.prekey('signed', 1)) === undefined, 'prekey');
      expect((await store.pin('bob')) === undefined, 'pin');
      expect((await store.session('c', 's')) === undefined, 'session');
      expect((await store.sessionOfEpoch('c', 1n)) === undefined, 'sessionOfEpoch');
      expect((await store.pending('create')) === undefined, 'pending');
      const [sealed] = await store.sealedTo([{ userId: 'bob', deviceId: 'phone' }]);
      expect(sealed === false, 'sealedTo');
    }),
    check('keeps the device that was saved last', async (store) => {
      await store.saveDevice(device);
      await store.saveDevice({ ...device, state: 'registered', certificate: bytes(70, 9) });
      const kept = await store.device();
      expect(kept?.state === 'registered' && kept.deviceId === 'phone', 'state and name');
      expect(same(kept?.identityKey.privateKey, device.identityKey.privateKey), 'identity key');
      expect(same(kept?.certificate, bytes(70, 9)), 'certificate');
      expect(kept?.rootKey === undefined && kept?.linkSecret === undefined, 'what was absent stays absent');
    }),
    check('keeps prekeys apart by kind and id', async (store) => {
      await store.savePrekeys([prekey('one-time', 1, 1), prekey('kem-one-time', 1, 2), prekey('one-time', 2, 3)]);
      expect(same((await store.prekey('one-time', 1))?.keyPair.privateKey, bytes(32, 1)), 'one-time 1');
      expect(same((await store.prekey('kem-one-time', 1))?.keyPair.privateKey, bytes(32, 2)), 'kem-one-time 1');
      expect((await store.prekey('kem-one-time', 2)) === undefined, 'kem-one-time 2');
    }),
    check('lists the prekeys of a kind by id, with their times', async (store) => {
      const made = { ...prekey('one-time', 10, 1), madeAt: new Date(1_000) };
      await store.savePrekeys([made, prekey('one-time', 9, 2), prekey('kem-one-time', 1, 3)]);
      const listed = await store.prekeys('one-time');
      expect(listed.map(({ keyId }) => keyId).join() === '9,10', 'ids in ascending order');
      expect(listed[1]?.madeAt?.getTime() === 1_000 && listed[0]?.madeAt === undefined, 'madeAt');
      expect(same(listed[1]?.keyPair.privateKey, bytes(32, 1)), 'private key');
      expect((await store.prekeys('signed')).length === 0, 'a kind without any');
    }),
    check('keeps prekeys until a time, and never brings one back', async (store) => {
      await store.savePrekeys([prekey('signed', 1, 1), prekey('signed', 2, 2)]);
      const names = [{ kind: 'signed', keyId: 1 } as const, { kind: 'signed', keyId: 7 } as const];
      await store.keepPrekeysUntil(names, new Date(5_000));
      const [first, second] = await store.prekeys('signed');
      expect(first?.keepUntil?.getTime() === 5_000 && same(first.keyPair.privateKey, bytes(32, 1)), 'keepUntil');
      expect(second?.keyId === 2 && second.keepUntil === undefined, 'the others stay as they are');
      expect((await store.prekey('signed', 7)) === undefined, 'one that is not there');
    }),
    check('forgets prekeys that are removed', async (store) => {
      await store.savePrekeys([prekey('one-time', 1, 1), prekey('one-time', 2, 2), prekey('kem-one-time', 1, 3)]);
      const name = { kind: 'one-time', keyId: 1 } as const;
      await store.removePrekeys([name]);
      await store.removePrekeys([name]);
      expect((await store.prekey('one-time', 1)) === undefined, 'the removed one');
      expect((await store.prekeys('one-time')).length === 1, 'another id');
      expect((await store.prekey('kem-one-time', 1)) !== undefined, 'another kind');
    }),
    check('pins the first root key, also when two come at once', async (store) => {
      const pinned = await Promise.all([store.pinFirst('bob', bytes(32, 1)), store.pinFirst('bob', bytes(32, 2))]);
      const stands = await store.pin('bob');
      expect(
        pinned.every((each) => same(each, stands)),
        'both see the pin that stands',
      );
      await store.replacePin('bob', bytes(32, 3));
      expect(same(await store.pin('bob'), bytes(32, 3)), 'replacePin');
      expect(same(await store.pinFirst('bob', bytes(32, 4)), bytes(32, 3)), 'pinFirst after replacePin');
    }),
    check('keeps the device log of each user as it was saved last, with all that is in it', async (store) => {
      expect((await store.deviceLog('bob')) === undefined, 'none at first');
      await store.saveDeviceLog(deviceLog);
      await store.saveDeviceLog({ ...deviceLog, userId: 'carol', version: 1n, devices: [] });
      await store.saveDeviceLog({ ...deviceLog, version: 3n, head: bytes(32, 3) });
      const kept = await store.deviceLog('bob');
      expect(kept?.version === 3n && same(kept.head, bytes(32, 3)), 'the last one');
      const [first, second] = kept?.devices ?? [];
      expect(first?.addedInVersion === 1n && first.revokedInVersion === undefined, 'a device');
      expect(second?.revokedInVersion === 3n && same(second.certificateSignature, bytes(64, 5)), 'a revoked device');
      const rootKey = kept?.rootKeys.at(-1);
      expect(rootKey?.signedByPrevious === false && same(rootKey.rootKey, bytes(32, 4)), 'root keys');
      expect(same(kept?.toldHeads[0]?.head, bytes(32, 6)) && kept?.toldHeads[0]?.version === 9n, 'told heads');
      expect((await store.deviceLog('carol'))?.version === 1n, "another user's");
    }),
    check('keeps a session and forgets the prekeys that it spent', async (store) => {
      await store.savePrekeys([prekey('one-time', 1, 1), prekey('one-time', 2, 2), prekey('signed', 1, 3)]);
      await store.saveSession(session, [{ kind: 'one-time', keyId: 1 }]);
      expect(same((await store.session('c', 's'))?.sessionKey, session.sessionKey), 'session');
      const ofEpoch = await store.sessionOfEpoch('c', 7n);
      expect(ofEpoch?.sessionId === 's' && ofEpoch.epoch === 7n, 'sessionOfEpoch');
      expect((await store.prekey('one-time', 1)) === undefined, 'the spent prekey is gone');
      expect((await store.prekey('one-time', 2)) !== undefined, 'another one is not');
      expect((await store.prekey('signed', 1)) !== undefined, 'nor one of another kind');
    }),
    check('keeps the roster of a conversation, the last one of it', async (store) => {
      expect((await store.rosterLog('c')) === undefined, 'none at first');
      await store.saveRosterLog(roster);
      await store.saveRosterLog({ ...roster, conversationId: 'd' });
      await store.saveRosterLog({ ...roster, version: 8n, head: bytes(32, 8) });
      const kept = await store.rosterLog('c');
      expect(kept?.version === 8n && same(kept.head, bytes(32, 8)), 'the last one');
      expect(kept?.members[1]?.userId === 'bob' && kept.permissions.addMembers === 2, 'members and permissions');
      expect(kept?.versions[0]?.version === 7n && same(kept.versions[0].rosterHash, bytes(32, 9)), 'versions');
      expect((await store.rosterLog('d'))?.version === 7n, "another conversation's");
    }),
    check('remembers to whom this device has sealed', async (store) => {
      const [bob, carol] = [
        { userId: 'bob', deviceId: 'phone' },
        { userId: 'carol', deviceId: 'phone' },
      ] as const;
      await store.addSealedTo([bob]);
      await store.addSealedTo([bob]);
      const [toBob, toCarol] = await store.sealedTo([bob, carol]);
      expect(toBob === true && toCarol === false, 'sealedTo');
    }),
    check('never gives a number of a counter twice', async (store) => {
      expect((await store.reserve('a', 3)) === 0n, 'counters start at 0');
      const firsts = await Promise.all(Array.from({ length: 20 }, () => store.reserve('a', 2)));
      expect(new Set(firsts).size === 20 && firsts.every((first) => first >= 3n), 'concurrent reservations');
      expect((await store.reserve('b', 1)) === 0n, 'another counter');
    }),
    check('keeps a pending request until it is removed', async (store) => {
      await store.savePending('rotate c', { content: bytes(10, 1), secret: bytes(32, 2) });
      await store.savePending('rotate c', { content: bytes(10, 3) });
      const pending = await store.pending('rotate c');
      expect(same(pending?.content, bytes(10, 3)) && pending?.secret === undefined, 'the last one');
      await store.removePending('rotate c');
      await store.removePending('rotate c');
      expect((await store.pending('rotate c')) === undefined, 'removed');
    }),
    check('keeps where it stands in what it pulls', async (store) => {
      expect((await store.cursor('changes')) === undefined, 'none at first');
      await store.saveCursor('changes', 'a');
      await store.saveCursor('changes', 'b');
      await store.saveCursor('others', 'c');
      expect((await store.cursor('changes')) === 'b', 'the last one');
      await store.saveCursor('changes', undefined);
      expect((await store.cursor('changes')) === undefined, 'a forgotten one');
      expect((await store.cursor('others')) === 'c', 'another name');
    }),
    check('keeps the keys that it wants, one of each session, the longest wanted first', async (store) => {
      await store.saveWantedKeys([wanted('c', 's1', 3_000), wanted('c', 's2', 1_000), wanted('d', 's1', 2_000)]);
      await store.saveWantedKeys([{ ...wanted('c', 's1', 3_000), kind: 'REWRAP' }]);
      const kept = await store.wantedKeys();
      expect(kept.map(({ conversationId, sessionId }) => conversationId + sessionId).join() === 'cs2,ds1,cs1', 'order');
      expect(kept[2]?.kind === 'REWRAP', 'the last one of a session');
      expect(kept[0]?.kind === 'MISSING' && kept[0]?.since.getTime() === 1_000, 'the others as they were');
      const name = { conversationId: 'c', sessionId: 's1' };
      await store.removeWantedKeys([name]);
      await store.removeWantedKeys([name]);
      expect((await store.wantedKeys()).map(({ sessionId }) => sessionId).join() === 's2,s1', 'the removed one');
    }),
    check('keeps what waits to be sent, by position', async (store) => {
      await store.saveOutgoing(outgoing('y', 10n));
      await store.saveOutgoing(outgoing('x', 9n));
      await store.saveOutgoing({ ...outgoing('x', 9n), request: bytes(3, 7) });
      const [x, y] = await store.outgoing();
      expect(x?.id === 'x' && y?.id === 'y' && (await store.outgoing()).length === 2, 'order');
      expect(y?.request === undefined && same(x?.request, bytes(3, 7)), 'request');
      expect(same(x?.plaintext, bytes(5, 1)) && x?.enqueuedAt.getTime() === 4_000, 'the message');
      await store.removeOutgoing('y');
      await store.removeOutgoing('y');
      expect((await store.outgoing()).map(({ id }) => id).join() === 'x', 'removed');
    }),
    check('keeps how far messages were delivered, and which could not be read', async (store) => {
      expect((await store.delivered('c')) === undefined, 'nothing at first');
      await store.saveDelivered('c', 10n, [unread('c', 10n), unread('c', 9n)]);
      await store.saveDelivered('d', 1n, [unread('d', 1n)]);
      await store.saveDelivered('c', 11n, []);
      expect((await store.delivered('c')) === 11n && (await store.delivered('d')) === 1n, 'delivered');
      const sequences = async (conversationId?: string) =>
        (await store.unread(conversationId)).map(({ sequence }) => sequence).join();
      expect((await sequences('c')) === '9,10' && (await sequences()) === '1,9,10', 'unread');
      await store.removeUnread([unread('c', 9n)]);
      await store.removeUnread([unread('c', 9n)]);
      expect((await sequences('c')) === '10' && (await store.delivered('c')) === 11n, 'read in the end');
    }),
    check('keeps which messages of a sender were received, with where they were delivered up to', async (store) => {
      expect((await store.received('c', 's', carol)) === undefined, 'nothing at first');
      await store.saveDelivered('c', 1n, [unread('c', 1n)], received('s', carol, 0n));
      await store.saveDelivered('c', 2n, []);
      await store.removeUnread([unread('c', 1n)], received('s', carol, 2n ** 60n));
      await store.saveDelivered('c', 3n, [], received('t', carol, 5n));
      const last = async (sessionId: string, sender: Ref) =>
        (await store.received('c', sessionId, sender))?.counters.at(-1)?.last;
      expect((await last('s', carol)) === 2n ** 60n && (await last('t', carol)) === 5n, 'the last one of a session');
      expect((await last('s', { ...carol, deviceId: 'phone' })) === undefined, 'of another device');
      expect((await store.unread()).length === 0 && (await store.delivered('c')) === 3n, 'what goes with it');
    }),
    check('gives copies, and keeps copies', async (store) => {
      const given = prekey('one-time', 1, 7);
      await store.savePrekeys([given]);
      given.keyPair.privateKey.fill(9);
      const returned = await store.prekey('one-time', 1);
      expect(same(returned?.keyPair.privateKey, bytes(32, 7)), 'what was saved is changed afterwards');
      returned?.keyPair.privateKey.fill(9);
      expect(
        same((await store.prekey('one-time', 1))?.keyPair.privateKey, bytes(32, 7)),
        'what was returned is changed',
      );
      const rootKey = bytes(32, 1);
      (await store.pinFirst('bob', rootKey)).fill(9);
      rootKey.fill(9);
      (await store.pin('bob'))?.fill(9);
      expect(same(await store.pin('bob'), bytes(32, 1)), 'a pin is changed');
      (await store.session('c', 's'))?.sessionKey.fill(9);
      await store.saveSession(session, []);
      (await store.session('c', 's'))?.sessionKey.fill(9);
      expect(same((await store.sessionOfEpoch('c', 7n))?.sessionKey, session.sessionKey), 'a session is changed');
      await store.savePending('p', { content: bytes(3, 1) });
      (await store.pending('p'))?.content.fill(9);
      expect(same((await store.pending('p'))?.content, bytes(3, 1)), 'a pending request is changed');
      await store.saveOutgoing(outgoing('x', 1n));
      (await store.outgoing())[0]?.plaintext.fill(9);
      expect(same((await store.outgoing())[0]?.plaintext, bytes(5, 1)), 'an outgoing message is changed');
    }),
    check('takes calls that overlap, of any kind', async (store) => {
      await store.savePrekeys(Array.from({ length: 20 }, (_, keyId) => prekey('one-time', keyId, keyId)));
      await Promise.all([
        ...Array.from({ length: 20 }, (_, keyId) =>
          store.saveSession({ ...session, sessionId: `s${keyId}`, epoch: BigInt(keyId) }, [
            { kind: 'one-time', keyId },
          ]),
        ),
        ...Array.from({ length: 20 }, (_, i) => store.savePrekeys([prekey('kem-one-time', i, i)])),
        ...Array.from({ length: 20 }, (_, i) => store.saveOutgoing(outgoing(`m${i}`, BigInt(i)))),
        ...Array.from({ length: 20 }, (_, i) => store.saveCursor(`cursor ${i}`, String(i))),
        ...Array.from({ length: 20 }, () => store.reserve('overlapping', 1)),
      ]);
      expect((await store.prekeys('one-time')).length === 0, 'every spent prekey is gone');
      expect((await store.prekeys('kem-one-time')).length === 20, 'every prekey is there');
      expect((await store.outgoing()).length === 20, 'every message is there');
      for (let i = 0; i < 20; i += 1) {
        expect((await store.sessionOfEpoch('c', BigInt(i)))?.sessionId === `s${i}`, `session ${i}`);
        expect((await store.cursor(`cursor ${i}`)) === String(i), `cursor ${i}`);
      }
      expect((await store.reserve('overlapping', 1)) === 20n, 'the counter');
    }),
    ...outlivesReopening(stores),
  ];
}

/** For stores that can be reopened: everything that was acknowledged is there again, and nothing that was taken away. */
function outlivesReopening({ open, reopen }: StoresToCheck): ConformanceCheck[] {
  if (reopen === undefined) return [];
  const check = (name: string, run: () => Promise<void>): ConformanceCheck => ({ name, run });
  return [
    check('has everything again when it is reopened', async () => {
      const before = await open();
      await fill(before);
      const text = describeAll(await readAll(before));
      const after = await reopen(before);
      expect(describeAll(await readAll(after)) === text, 'what was saved');
      expect((await after.reserve('a', 1)) === 5n, 'a counter goes on where it was');
      expect(same(await after.pinFirst('bob', bytes(32, 9)), bytes(32, 1)), 'a pin stands');
    }),
    check('does not have again what was taken away, when it is reopened', async () => {
      const before = await open();
      await fill(before);
      await before.removePrekeys([{ kind: 'signed', keyId: 1 }]);
      await before.saveSession(session, [{ kind: 'one-time', keyId: 1 }]);
      await before.removePending('p');
      await before.saveCursor('changes', undefined);
      await before.removeWantedKeys([{ conversationId: 'c', sessionId: 's' }]);
      await before.removeOutgoing('x');
      await before.removeUnread([unread('c', 4n)]);
      const after = await reopen(before);
      expect((await after.prekey('signed', 1)) === undefined, 'a removed prekey');
      expect((await after.prekey('one-time', 1)) === undefined, 'a spent prekey');
      expect((await after.pending('p')) === undefined, 'a pending request');
      expect((await after.cursor('changes')) === undefined, 'a cursor');
      expect((await after.wantedKeys()).length === 0, 'a wanted key');
      expect((await after.outgoing()).length === 0, 'an outgoing message');
      expect((await after.unread()).length === 0, 'an unread message');
      expect((await after.delivered('c')) === 5n, 'what stays');
    }),
  ];
}

/** Something of every kind. */
async function fill(store: KeyStore): Promise<void> {
  await store.saveDevice({ ...device, rootKey: keyPair, certificate: bytes(70, 9), linkSecret: bytes(32, 8) });
  await store.savePrekeys([prekey('signed', 1, 1), { ...prekey('one-time', 1, 2), madeAt: new Date(1_000) }]);
  await store.keepPrekeysUntil([{ kind: 'signed', keyId: 1 }], new Date(5_000));
  await store.pinFirst('bob', bytes(32, 1));
  await store.saveDeviceLog(deviceLog);
  await store.saveSession(session, []);
  await store.addSealedTo([{ userId: 'bob', deviceId: 'phone' }]);
  await store.reserve('a', 5);
  await store.savePending('p', { content: bytes(3, 1), secret: bytes(32, 2) });
  await store.saveCursor('changes', 'a');
  await store.saveWantedKeys([wanted('c', 's', 1_000)]);
  await store.saveOutgoing({ ...outgoing('x', 2n ** 60n), request: bytes(3, 4) });
  await store.saveDelivered('c', 5n, [unread('c', 4n)], received('s', carol, 7n));
}

async function readAll(store: KeyStore): Promise<unknown[]> {
  return [
    await store.device(),
    await store.prekeys('signed'),
    await store.prekeys('one-time'),
    await store.pin('bob'),
    await store.deviceLog('bob'),
    await store.session('c', 's'),
    await store.sessionOfEpoch('c', 7n),
    await store.sealedTo([{ userId: 'bob', deviceId: 'phone' }]),
    await store.pending('p'),
    await store.cursor('changes'),
    await store.wantedKeys(),
    await store.outgoing(),
    await store.delivered('c'),
    await store.unread(),
    await store.received('c', 's', carol),
  ];
}

/** Plain data as text, alike where it is alike; what is undefined counts as absent. */
function describeAll(value: unknown): string {
  if (value instanceof Uint8Array) return `bytes ${Array.from(value).join(' ')}`;
  if (value instanceof Date) return `date ${value.getTime()}`;
  if (typeof value === 'bigint') return `bigint ${value}`;
  if (Array.isArray(value)) return `[${value.map(describeAll).join()}]`;
  if (typeof value !== 'object' || value === null) return JSON.stringify(value) ?? 'undefined';
  const fields = Object.entries(value).filter(([, field]) => field !== undefined);
  return `{${fields
    .map(([name, field]) => `${name}: ${describeAll(field)}`)
    .sort()
    .join()}}`;
}

function bytes(length: number, value: number): Uint8Array {
  return new Uint8Array(length).fill(value);
}

const keyPair = { publicKey: bytes(32, 1), privateKey: bytes(32, 2) };
const device: StoredDevice = {
  userId: 'alice',
  deviceId: 'phone',
  state: 'made',
  identityKey: keyPair,
  signingKey: keyPair,
  signedPrekeyId: 1,
  lastResortPrekeyId: 2,
};
const loggedDevice = {
  deviceId: 'phone',
  identityKey: bytes(32, 1),
  signingKey: bytes(32, 2),
  certificateRootKey: bytes(32, 4),
  certificateSignature: bytes(64, 5),
};
const deviceLog: StoredDeviceLog = {
  userId: 'bob',
  version: 2n,
  head: bytes(32, 2),
  rootKeys: [{ rootKey: bytes(32, 4), sinceVersion: 2n, signedByPrevious: false }],
  devices: [
    { ...loggedDevice, addedInVersion: 1n },
    { ...loggedDevice, deviceId: 'tablet', addedInVersion: 2n, revokedInVersion: 3n },
  ],
  toldHeads: [{ version: 9n, head: bytes(32, 6) }],
};
const roster: RosterState = {
  conversationId: 'c',
  version: 7n,
  head: bytes(32, 7),
  members: [
    { userId: 'alice', role: 1 },
    { userId: 'bob', role: 2 },
  ],
  permissions: { addMembers: 2, removeMembers: 1, changePolicy: 1 },
  historyPolicy: 1,
  versions: [{ version: 7n, rosterHash: bytes(32, 9), historyPolicy: 1 }],
  isBased: true,
};
const session: StoredSession = {
  conversationId: 'c',
  sessionId: 's',
  epoch: 7n,
  header: bytes(300, 1),
  headerSignature: bytes(64, 2),
  sessionKey: bytes(32, 3),
  attempt: 0,
  sealer: { userId: 'alice', deviceId: 'phone' },
};

function prekey(kind: StoredPrekey['kind'], keyId: number, value: number): StoredPrekey {
  return { kind, keyId, keyPair: { publicKey: bytes(32, 0), privateKey: bytes(32, value) } };
}

function wanted(conversationId: string, sessionId: string, since: number): StoredWantedKey {
  return { conversationId, sessionId, kind: 'MISSING', priority: 'BACKGROUND', since: new Date(since) };
}

function outgoing(id: string, position: bigint): StoredOutgoing {
  return { id, position, conversationId: 'c', plaintext: bytes(5, 1), enqueuedAt: new Date(4_000) };
}

const carol: Ref = { userId: 'carol', deviceId: 'laptop' };

function received(sessionId: string, sender: Ref, last: bigint): StoredReceived {
  return { conversationId: 'c', sessionId, sender, counters: [{ first: 0n, last }] };
}

function unread(conversationId: string, sequence: bigint): StoredUnread {
  return { conversationId, sessionId: 's', sequence };
}

function same(a: Uint8Array | undefined, b: Uint8Array | undefined): boolean {
  return a !== undefined && b !== undefined && equalBytes(a, b);
}

function expect(held: boolean, what: string): void {
  if (!held) throw new Error(`the key store does not conform: ${what}`);
}
