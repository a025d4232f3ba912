import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  chmodSync,
  copyFileSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { DatabaseSync } from 'node:sqlite';
import { afterAll, describe, expect, test } from 'vitest';
import { migrate } from '../src/disk/store-file.ts';
import {
  KeyStoreClosedError,
  KeyStoreDamagedError,
  KeyStoreInUseError,
  KeyStoreNewerError,
  openDiskKeyStore,
  type StoreSecret,
  WrongPassphraseError,
} from '../src/disk.ts';
import type { StoredSession } from '../src/index.ts';

const folder = mkdtempSync(join(tmpdir(), 'keytrail-disk-'));
const children: ChildProcess[] = [];
afterAll(() => {
  for (const child of children) child.kill('SIGKILL');
  rmSync(folder, { recursive: true, force: true });
});

let made = 0;
const newPath = () => {
  made += 1;
  return join(folder, `${made}.keys`);
};
const key: StoreSecret = { key: new Uint8Array(32).fill(7) };
const cheap = { N: 2 ** 10, r: 8, p: 1 };
const phrase = (passphrase: string): StoreSecret => ({ passphrase, cost: cheap });
const bytes = (length: number, value: number) => new Uint8Array(length).fill(value);
const session: StoredSession = {
  conversationId: 'conversation-of-alice',
  sessionId: 'session-1',
  epoch: 1n,
  header: bytes(300, 1),
  headerSignature: bytes(64, 2),
  sessionKey: bytes(32, 3),
  attempt: 0,
  sealer: { userId: 'alice', deviceId: 'laptop' },
};

/** A store with something in it, closed. */
async function storeAt(path: string, secret: StoreSecret = key): Promise<void> {
  const store = await openDiskKeyStore({ path, secret });
  await store.pinFirst('bob', bytes(32, 1));
  await store.saveSession(session, []);
  await store.reserve('sent', 5);
  await store.savePrekeys([1, 2].map((keyId) => ({ kind: 'one-time', keyId, keyPair: keyPair(keyId) }) as const));
  await store.close();
}

function keyPair(value: number) {
  return { publicKey: bytes(32, value), privateKey: bytes(32, value) };
}

/** Changes the file behind the store's back. */
function tamper(path: string, change: (db: DatabaseSync) => void): void {
  const db = new DatabaseSync(path);
  change(db);
  db.close();
}

const opening = (path: string, secret: StoreSecret = key) => openDiskKeyStore({ path, secret });

describe('a key store on disk', () => {
  test('is for its owner alone, also when the file came with another mode', async () => {
    const path = newPath();
    await storeAt(path);
    expect(statSync(path).mode & 0o777).toBe(0o600);
    chmodSync(path, 0o644);
    await (await opening(path)).close();
    expect(statSync(path).mode & 0o777).toBe(0o600);
  });

  test('is opened by one client at a time, in this process or another', async () => {
    const path = newPath();
    const first = await opening(path);
    await expect(opening(path)).rejects.toThrow(KeyStoreInUseError);
    await first.close();

    const other = holder(path);
    expect(await other.line()).toBe('open');
    await expect(opening(path)).rejects.toThrow(KeyStoreInUseError);
    other.child.kill('SIGKILL');
    await once(other.child, 'exit');
    await (await opening(path)).close();
  });

  test('is made once when two clients want it at the same time', async () => {
    const path = newPath();
    const opened = await Promise.allSettled([opening(path), opening(path), opening(path)]);
    const won = opened.flatMap((each) => (each.status === 'fulfilled' ? [each.value] : []));
    const lost = opened.flatMap((each) => (each.status === 'rejected' ? [each.reason] : []));
    expect(won).toHaveLength(1);
    expect(lost.every((error) => error instanceof KeyStoreInUseError)).toBe(true);
    await won[0]?.close();
  });

  test('says so when it is used after it was closed', async () => {
    const store = await opening(newPath());
    await store.close();
    await store.close();
    await expect(store.device()).rejects.toThrow(KeyStoreClosedError);
    await expect(store.reserve('a', 1)).rejects.toThrow(KeyStoreClosedError);
  });

  test('does what was asked for before it is closed', async () => {
    const path = newPath();
    const store = await opening(path);
    const reserved = store.reserve('a', 3);
    await store.close();
    expect(await reserved).toBe(0n);
    const again = await opening(path);
    expect(await again.reserve('a', 1)).toBe(3n);
    await again.close();
  });

  test('tells nobody without the key whose keys it holds, or of which conversations', async () => {
    const path = newPath();
    const store = await opening(path);
    const secretKey = Uint8Array.from({ length: 32 }, (_, i) => i + 100);
    await store.saveSession({ ...session, sessionKey: secretKey }, []);
    await store.pinFirst('user-bob', bytes(32, 1));
    await store.savePending('rotate conversation-of-alice', { content: bytes(40, 77) });
    await store.close();
    const file = readFileSync(path);
    const texts = ['user-bob', 'alice', 'laptop', 'conversation', 'session', 'rotate'];
    // The schema itself names nothing of the application.
    for (const text of texts) expect(file.includes(text), text).toBe(false);
    for (const plain of [
      secretKey,
      bytes(32, 1),
      bytes(40, 77),
      Buffer.from(Buffer.from(secretKey).toString('base64')),
    ])
      expect(file.includes(Buffer.from(plain))).toBe(false);
  });

  test('has nothing of a forgotten private key in any of its files, not even encrypted', async () => {
    const path = newPath();
    await storeAt(path);
    const sealed = new Map<string, Uint8Array>();
    tamper(path, (db) => {
      for (const { id, value } of db.prepare('SELECT id, value FROM stored').all())
        sealed.set(Buffer.from(id as Uint8Array).toString('hex'), value as Uint8Array);
    });
    const store = await opening(path);
    await store.removePrekeys([{ kind: 'one-time', keyId: 1 }]);
    await store.close();
    tamper(path, (db) => {
      for (const { id } of db.prepare('SELECT id FROM stored').all())
        sealed.delete(Buffer.from(id as Uint8Array).toString('hex'));
    });
    const [forgotten] = sealed.values();
    expect(sealed.size).toBe(1);
    if (!forgotten) throw new Error('nothing was forgotten');
    expect(readFileSync(path).includes(Buffer.from(forgotten.subarray(0, 48)))).toBe(false);
    expect(readFileSync(`${path}-journal`, { flag: 'a+' })).toHaveLength(0);
  });
});

describe('the secret of a key store on disk', () => {
  test('is a passphrase, however its letters were composed', async () => {
    const path = newPath();
    await storeAt(path, phrase('Zu\u0308rich'));
    await (await opening(path, phrase('Z\u00fcrich'))).close();
  });

  test('opens nothing when it is another one', async () => {
    const [byPhrase, byKey] = [newPath(), newPath()];
    await storeAt(byPhrase, phrase('right'));
    await storeAt(byKey);
    await expect(opening(byPhrase, phrase('wrong'))).rejects.toThrow(WrongPassphraseError);
    await expect(opening(byPhrase, key)).rejects.toThrow(WrongPassphraseError);
    await expect(opening(byKey, { key: bytes(32, 8) })).rejects.toThrow(WrongPassphraseError);
    await expect(opening(byKey, phrase('right'))).rejects.toThrow(WrongPassphraseError);
    await expect(opening(byKey, { key: bytes(31, 7) })).rejects.toThrow(RangeError);
    // The file is free again each time.
    await (await opening(byPhrase, phrase('right'))).close();
  });

  test('can be changed, from then on the new one alone opens it, and everything is there', async () => {
    const path = newPath();
    await storeAt(path, phrase('old'));
    const store = await opening(path, phrase('old'));
    await store.changeSecret(phrase('new'));
    await store.close();
    await expect(opening(path, phrase('old'))).rejects.toThrow(WrongPassphraseError);
    const again = await opening(path, phrase('new'));
    expect((await again.session(session.conversationId, 'session-1'))?.sessionKey).toEqual(session.sessionKey);
    await again.changeSecret(key);
    await again.close();
    await (await opening(path)).close();
  });

  test('costs no more memory than this process may give, whatever the file says', async () => {
    const path = newPath();
    await storeAt(path, phrase('right'));
    tamper(path, (db) => db.exec('UPDATE wrapped_key SET cost_n = 1073741824'));
    await expect(opening(path, phrase('right'))).rejects.toThrow(WrongPassphraseError);
  });
});

describe('a key store on disk that somebody changed', () => {
  const problems: Record<string, (path: string) => void> = {
    'was cut off to nothing': (path) => truncateSync(path, 0),
    'was cut off in the middle': (path) => truncateSync(path, Math.floor(statSync(path).size / 2)),
    'is something else': (path) => writeFileSync(path, 'not a database at all, but long enough to be one'.repeat(100)),
    'is another file of SQLite': (path) => {
      rmSync(path);
      tamper(path, (db) => db.exec('CREATE TABLE stored (id blob)'));
    },
    'lost a row': (path) => tamper(path, (db) => db.exec('DELETE FROM stored WHERE id = (SELECT min(id) FROM stored)')),
    'lost its sum': (path) => tamper(path, (db) => db.exec('DELETE FROM sum')),
    'lost all rows and its sum': (path) => tamper(path, (db) => db.exec('DELETE FROM stored; DELETE FROM sum')),
    'has the values of two rows exchanged': (path) =>
      tamper(path, (db) => {
        const [a, b] = db.prepare('SELECT id, value FROM stored ORDER BY id LIMIT 2').all();
        const update = db.prepare('UPDATE stored SET value = ? WHERE id = ?');
        update.run(b?.value as Uint8Array, a?.id as Uint8Array);
        update.run(a?.value as Uint8Array, b?.id as Uint8Array);
      }),
    'has a row in another list': (path) =>
      tamper(path, (db) => db.exec("UPDATE stored SET grouping = x'' WHERE length(grouping) = 32")),
    'lost its table': (path) => tamper(path, (db) => db.exec('DROP TABLE stored')),
    'says that nothing was made in it': (path) => tamper(path, (db) => db.exec('PRAGMA user_version = 0')),
  };
  for (const [name, change] of Object.entries(problems)) {
    test(`is refused when it ${name}`, async () => {
      const path = newPath();
      await storeAt(path);
      change(path);
      await expect(opening(path)).rejects.toThrow(KeyStoreDamagedError);
      await expect(opening(path)).rejects.not.toThrow(KeyStoreInUseError);
    });
  }

  test('is refused when one row alone is an older one of itself', async () => {
    const [path, older] = [newPath(), newPath()];
    await storeAt(path);
    copyFileSync(path, older);
    const store = await opening(path);
    await store.reserve('sent', 5);
    await store.close();
    tamper(path, (db) => {
      db.prepare('ATTACH ? AS older').run(older);
      const changed = db
        .prepare(
          'UPDATE stored SET value = (SELECT value FROM older.stored o WHERE o.id = stored.id) WHERE value NOT IN (SELECT value FROM older.stored)',
        )
        .run();
      expect(changed.changes).toBe(1);
    });
    await expect(opening(path)).rejects.toThrow(KeyStoreDamagedError);
  });

  test('never gives a wrong answer, wherever a byte of it was changed', async () => {
    const path = newPath();
    await storeAt(path);
    const sound = readFileSync(path);
    let refused = 0;
    for (let at = 0; at < sound.length; at += 409) {
      const changed = newPath();
      const file = new Uint8Array(sound);
      file[at] = (file[at] ?? 0) ^ 0x41;
      writeFileSync(changed, file);
      try {
        const store = await opening(changed);
        expect((await store.session(session.conversationId, 'session-1'))?.sessionKey).toEqual(session.sessionKey);
        expect(await store.reserve('sent', 0)).toBe(5n);
        expect(await store.prekeys('one-time')).toHaveLength(2);
        await store.close();
      } catch (error) {
        if (!isTyped(error)) throw error;
        refused += 1;
      }
    }
    expect(refused).toBeGreaterThan(5);
  });

  test('is refused by an older version of this package, with the version that it has', async () => {
    const path = newPath();
    await storeAt(path);
    tamper(path, (db) => db.exec('PRAGMA user_version = 99'));
    await expect(opening(path)).rejects.toMatchObject({ name: 'KeyStoreNewerError', version: 99 });
  });
});

describe('the schema of a key store on disk', () => {
  const first = 'CREATE TABLE kept (name text PRIMARY KEY)';
  const second = "ALTER TABLE kept ADD COLUMN since integer NOT NULL DEFAULT 7; INSERT INTO kept (name) VALUES ('new')";

  test('goes on from the version that a file has, once, with what is in it', () => {
    const db = new DatabaseSync(':memory:');
    migrate(db, [first]);
    db.exec("INSERT INTO kept VALUES ('old')");
    migrate(db, [first, second]);
    migrate(db, [first, second]);
    expect(db.prepare('PRAGMA user_version').get()).toEqual({ user_version: 2 });
    expect(db.prepare('SELECT name, since FROM kept ORDER BY name').all()).toEqual([
      { name: 'new', since: 7 },
      { name: 'old', since: 7 },
    ]);
    db.close();
  });

  test('stays as it was when a step fails', () => {
    const db = new DatabaseSync(':memory:');
    migrate(db, [first]);
    db.exec('BEGIN');
    expect(() => migrate(db, [first, second, 'not a statement'])).toThrow('syntax error');
    db.exec('ROLLBACK');
    expect(db.prepare('PRAGMA user_version').get()).toEqual({ user_version: 1 });
    expect(db.prepare('SELECT * FROM kept').all()).toEqual([]);
    db.close();
  });
});

describe('a key store on disk whose process is killed', () => {
  test('has everything that was acknowledged, and nothing in part', async () => {
    const path = newPath();
    const acknowledged = new Set<number>();
    for (let round = 1; round <= 8; round += 1) {
      const writer = holder(path, 'write');
      expect(await writer.line()).toBe('open');
      // Some rounds end within the first transactions, some after many.
      for (let lines = 0; lines < (round * 7) % 17; lines += 1) acknowledged.add(Number(await writer.line()));
      writer.child.kill('SIGKILL');
      for (let line = await writer.line(); line !== undefined; line = await writer.line())
        acknowledged.add(Number(line));

      const store = await opening(path);
      const count = Number(await store.reserve('sessions', 0));
      const prekeys = new Set((await store.prekeys('one-time')).map(({ keyId }) => keyId));
      for (const i of acknowledged) expect(i).toBeLessThan(count);
      for (let i = 0; i < count; i += 1) {
        const kept = await store.session('c', `s${i}`);
        if (acknowledged.has(i)) expect(kept?.sessionKey).toEqual(bytes(32, i % 256));
        expect((await store.sessionOfEpoch('c', BigInt(i)))?.sessionId).toBe(kept?.sessionId);
        // Its prekey went with the session's coming.
        if (kept !== undefined) expect(prekeys.has(i)).toBe(false);
      }
      await store.close();
    }
    expect(acknowledged.size).toBeGreaterThan(20);
  });
});

function isTyped(error: unknown): boolean {
  return [KeyStoreDamagedError, KeyStoreNewerError, WrongPassphraseError].some((type) => error instanceof type);
}

/** Another process with the store open; with `write` it goes on writing, and says what was acknowledged. */
function holder(path: string, what = 'hold') {
  const child = spawn(process.execPath, [join(import.meta.dirname, 'key-store-writer.ts'), path, what], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  children.push(child);
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  return { child, line: async (): Promise<string | undefined> => (await lines.next()).value };
}
