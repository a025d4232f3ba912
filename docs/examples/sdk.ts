import { randomUUID } from 'node:crypto';
import { device } from './device.ts';

// Two users and a message: bin/with-node node docs/examples/sdk.ts .local/up.env
const run = randomUUID().slice(0, 8);
const alice = device(`alice-${run}`, 'laptop');
const bob = device(`bob-${run}`, 'phone');
await Promise.all([alice.register(), bob.register()]);
await Promise.all([alice.attach(), bob.attach()]);

const { conversationId } = await alice.createConversation({ kind: 'direct', members: [`bob-${run}`] });
await alice.send(conversationId, 'hello');
for (const message of await bob.messages(conversationId)) {
  console.log(message.sender.userId, 'text' in message ? message.text : message.error.message);
}
await Promise.all([alice.close(), bob.close()]);
