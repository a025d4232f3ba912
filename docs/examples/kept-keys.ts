import { mkdirSync } from 'node:fs';
import { dirname } from 'node:path';
import { openDiskKeyStore } from '@keytrail/client/disk';
import { device } from './device.ts';

/** A device whose keys are on disk: run again, it is the same one, and hears only what is new. */
const path = process.argv[3] ?? '.local/examples/carol.keys';
mkdirSync(dirname(path), { recursive: true });
const keyStore = await openDiskKeyStore({ path, secret: { passphrase: 'for examples alone' } });
const carol = device('carol', 'laptop', keyStore);
await carol.register();
carol.onMessage((message) =>
  console.log(`message ${message.sequence}:`, 'text' in message ? message.text : message.error.message),
);

const { conversations } = await carol.listConversations();
const { conversationId } = conversations[0] ?? (await carol.createConversation({ kind: 'group', members: [] }));
const sent = new Promise((resolve) => carol.on('messageSent', resolve));
await carol.enqueue(conversationId, `a note to myself at ${new Date().toISOString()}`);
await sent;
await carol.receive();

await carol.close();
await keyStore.close();
