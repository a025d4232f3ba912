import { mkdtempSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { openDiskKeyStore } from '../src/disk.ts';

/** What a key store on disk costs on this machine: `bin/with-node node packages/client/test/disk-key-store-figures.ts [sessions]`. */
const sessions = Number(process.argv[2] ?? 1_000);
const folder = mkdtempSync(join(tmpdir(), 'keytrail-figures-'));
const path = join(folder, 'figures.keys');
const secret = { key: new Uint8Array(32).fill(1) };

async function told(what: string, work: () => unknown, times = 1): Promise<void> {
  const startedAt = performance.now();
  await work();
  console.log(`${what}: ${((performance.now() - startedAt) / times).toFixed(2)} ms`);
}

try {
  let store = await openDiskKeyStore({ path, secret });
  await told(
    'reserve, one after the other, each',
    async () => {
      for (let i = 0; i < 200; i += 1) await store.reserve('a', 1);
    },
    200,
  );
  await told('reserve, 200 at once', () => Promise.all(Array.from({ length: 200 }, () => store.reserve('a', 1))));
  const save = (i: number) =>
    store.saveSession(
      {
        conversationId: `c${i}`,
        sessionId: `s${i}`,
        epoch: 1n,
        header: new Uint8Array(2_000),
        headerSignature: new Uint8Array(64),
        sessionKey: new Uint8Array(32),
        attempt: 0,
        sealer: { userId: 'alice', deviceId: 'laptop' },
      },
      [],
    );
  await told(`${sessions} sessions at once`, () => Promise.all(Array.from({ length: sessions }, (_, i) => save(i))));
  await told(
    'a session, each',
    async () => {
      for (let i = 0; i < sessions; i += 1) await store.session(`c${i}`, `s${i}`);
    },
    sessions,
  );
  await store.close();
  await told(`opening it with ${sessions} sessions`, async () => {
    store = await openDiskKeyStore({ path, secret });
  });
  await store.close();
  console.log(`size: ${(statSync(path).size / 1e6).toFixed(1)} MB`);
} finally {
  rmSync(folder, { recursive: true, force: true });
}
