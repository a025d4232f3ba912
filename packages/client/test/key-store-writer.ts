import { writeSync } from 'node:fs';
import { openDiskKeyStore } from '../src/disk.ts';

/** Opens a store and keeps it, or writes into it until it is killed: session i spends one-time prekey i. Each line is a session that was acknowledged. */
const [path = '', what] = process.argv.slice(2);
const bytes = (value: number) => new Uint8Array(32).fill(value);
const store = await openDiskKeyStore({ path, secret: { key: bytes(7) } });
const say = (line: string) => writeSync(1, `${line}\n`);
say('open');
setInterval(() => {}, 60_000);

while (what === 'write') {
  const i = Number(await store.reserve('sessions', 1));
  await store.savePrekeys([{ kind: 'one-time', keyId: i, keyPair: { publicKey: bytes(0), privateKey: bytes(1) } }]);
  const session = {
    conversationId: 'c',
    sessionId: `s${i}`,
    epoch: BigInt(i),
    header: new Uint8Array(5_000).fill(1),
    headerSignature: new Uint8Array(64),
    sessionKey: bytes(i % 256),
    attempt: 0,
    sealer: { userId: 'alice', deviceId: 'laptop' },
  };
  await store.saveSession(session, [{ kind: 'one-time', keyId: i }]);
  say(String(i));
}
