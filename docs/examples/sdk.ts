import { randomUUID } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { createClient } from '@keytrail/client';
import { createNodeTransports, nodePrimitives } from '@keytrail/client/node';

// Two users and a message, over what `make up` started: bin/with-node node docs/examples/sdk.ts
const up = Object.fromEntries(
  readFileSync(join(import.meta.dirname, '../../.local/up.env'), 'utf8')
    .trim()
    .split('\n')
    .map((line) => line.split('=') as [string, string]),
);

function device(user: string, name: string) {
  const targets = {
    identityKeys: up.IDENTITY_KEYS_GRPC ?? '',
    conversation: up.CONVERSATION_GRPC ?? '',
    session: up.SESSION_GRPC ?? '',
    presence: up.PRESENCE_GRPC ?? '',
  };
  const token = async () => {
    const answer = await fetch(`${up.ISSUER}/token`, { method: 'POST', body: JSON.stringify({ user, device: name }) });
    return ((await answer.json()) as { token: string }).token;
  };
  return createClient({
    user,
    device: name,
    primitives: nodePrimitives,
    transports: createNodeTransports({ targets, token }),
  });
}

// New users with each run: their keys are in memory alone.
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
