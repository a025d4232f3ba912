import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import { type DiskKeyStore, openDiskKeyStore } from '../src/disk.ts';
import { type KeyStore, keyStoreConformance, memoryKeyStore, type StoresToCheck } from '../src/index.ts';

const folder = mkdtempSync(join(tmpdir(), 'keytrail-stores-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

let made = 0;
const secret = { key: new Uint8Array(32).fill(7) };
const paths = new Map<KeyStore, string>();
const onDisk: StoresToCheck & { open(): Promise<DiskKeyStore>; reopen(store: KeyStore): Promise<DiskKeyStore> } = {
  async open() {
    made += 1;
    const path = join(folder, `${made}.keys`);
    const store = await openDiskKeyStore({ path, secret });
    paths.set(store, path);
    return store;
  },
  async reopen(store) {
    await (store as DiskKeyStore).close();
    return openDiskKeyStore({ path: paths.get(store) ?? '', secret });
  },
};

describe('the key store in memory', () => {
  for (const check of keyStoreConformance({ open: memoryKeyStore })) test(check.name, check.run);
});

describe('the key store on disk', () => {
  for (const check of keyStoreConformance(onDisk)) test(check.name, check.run);
});

describe('the conformance suite', () => {
  type Broken = (sound: KeyStore) => Partial<KeyStore>;
  const pause = () => new Promise<void>((resolve) => setImmediate(resolve));
  const broken: Record<string, { caughtBy: string; store: Broken }> = {
    'a counter that is read and written in two steps': {
      caughtBy: 'never gives a number of a counter twice',
      store: () => {
        const counters = new Map<string, bigint>();
        return {
          async reserve(counter, count) {
            const first = counters.get(counter) ?? 0n;
            await pause();
            counters.set(counter, first + BigInt(count));
            return first;
          },
        };
      },
    },
    'a first pin that the second takes the place of': {
      caughtBy: 'pins the first root key, also when two come at once',
      store: (sound) => ({
        async pinFirst(userId, rootKey) {
          const before = await sound.pin(userId);
          await pause();
          if (before) return before;
          await sound.replacePin(userId, rootKey);
          return rootKey;
        },
      }),
    },
    'a session that leaves the prekeys that it spent': {
      caughtBy: 'keeps a session and forgets the prekeys that it spent',
      store: (sound) => ({ saveSession: (session) => sound.saveSession(session, []) }),
    },
    'prekeys that are given as they are kept': {
      caughtBy: 'gives copies, and keeps copies',
      store: (sound) => {
        const alias = new Map<number, Awaited<ReturnType<KeyStore['prekey']>>>();
        return {
          async savePrekeys(prekeys) {
            for (const prekey of prekeys) alias.set(prekey.keyId, prekey);
            await sound.savePrekeys(prekeys);
          },
          prekey: async (kind, keyId) => (await sound.prekey(kind, keyId)) && alias.get(keyId),
        };
      },
    },
    'prekeys in the order of their names': {
      caughtBy: 'lists the prekeys of a kind by id, with their times',
      store: (sound) => ({
        prekeys: async (kind) =>
          (await sound.prekeys(kind)).sort((a, b) => String(a.keyId).localeCompare(String(b.keyId))),
      }),
    },
    'a removed prekey that comes back with its time': {
      caughtBy: 'keeps prekeys until a time, and never brings one back',
      store: (sound) => ({
        async keepPrekeysUntil(names, keepUntil) {
          const keyPair = { publicKey: new Uint8Array(32), privateKey: new Uint8Array(32) };
          await sound.savePrekeys(
            await Promise.all(
              names.map(async (name) => ({
                keyPair,
                ...(await sound.prekey(name.kind, name.keyId)),
                ...name,
                keepUntil,
              })),
            ),
          );
        },
      }),
    },
    'messages that wait, in the order in which they were saved last': {
      caughtBy: 'keeps what waits to be sent, by position',
      store: () => {
        const kept = new Map<string, Awaited<ReturnType<KeyStore['outgoing']>>[number]>();
        return {
          outgoing: async () => [...kept.values()],
          async saveOutgoing(message) {
            kept.delete(message.id);
            kept.set(message.id, message);
          },
          async removeOutgoing(id) {
            kept.delete(id);
          },
        };
      },
    },
    'messages that moved on without those that could not be read': {
      caughtBy: 'keeps how far messages were delivered, and which could not be read',
      store: (sound) => ({
        saveDelivered: (conversationId, sequence, _unread, received) =>
          sound.saveDelivered(conversationId, sequence, [], received),
      }),
    },
    'messages that moved on without what was received of their sender': {
      caughtBy: 'keeps which messages of a sender were received, with where they were delivered up to',
      store: (sound) => ({
        saveDelivered: (conversationId, sequence, unread) => sound.saveDelivered(conversationId, sequence, unread),
      }),
    },
    'a wanted key that is there twice': {
      caughtBy: 'keeps the keys that it wants, one of each session, the longest wanted first',
      store: () => {
        const kept: Awaited<ReturnType<KeyStore['wantedKeys']>> = [];
        return {
          wantedKeys: async () => [...kept],
          async saveWantedKeys(keys) {
            kept.push(...keys);
          },
        };
      },
    },
  };

  for (const [name, { caughtBy, store }] of Object.entries(broken)) {
    test(`finds ${name}`, async () => {
      const open = () => {
        const sound = memoryKeyStore();
        return { ...sound, ...store(sound) };
      };
      expect(await failing({ open })).toContain(caughtBy);
    });
  }

  test('finds a store that forgets when it is reopened', async () => {
    const failed = await failing({ open: memoryKeyStore, reopen: () => memoryKeyStore() });
    expect(failed).toEqual([
      'has everything again when it is reopened',
      'does not have again what was taken away, when it is reopened',
    ]);
  });

  test('finds a store in which what was taken away comes back when it is reopened', async () => {
    const taken = new WeakMap<KeyStore, KeyStore>();
    const open = () => {
      const sound = memoryKeyStore();
      const store: KeyStore = { ...sound, removePrekeys: async () => {} };
      taken.set(store, sound);
      return store;
    };
    const reopen = (store: KeyStore) => taken.get(store) ?? store;
    expect(await failing({ open, reopen })).toContain('does not have again what was taken away, when it is reopened');
  });

  test('has nothing against a sound store', async () => {
    expect(await failing({ open: memoryKeyStore, reopen: (store) => store })).toEqual([]);
  });
});

async function failing(stores: StoresToCheck): Promise<string[]> {
  const failed: string[] = [];
  for (const { name, run } of keyStoreConformance(stores)) {
    try {
      await run();
    } catch {
      failed.push(name);
    }
  }
  return failed;
}
