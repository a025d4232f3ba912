import type { Stage } from './stage.ts';

/** Two users register a device each; the first creates the conversation with its initial session; the second derives the key and decrypts. */
export async function firstMessage(stage: Stage) {
  const alice = stage.device('alice', 'phone');
  const bob = stage.device('bob', 'phone');
  await Promise.all([alice.register(), bob.register()]);
  await Promise.all([alice.attach(), bob.attach()]);
  stage.say('alice/phone and bob/phone registered their whole key sets and attached');

  const { conversationId, sessionId, envelopesWritten } = await alice.createConversation({
    kind: 'direct',
    members: ['bob'],
  });
  stage.say(`alice created conversation ${conversationId} with session ${sessionId}`);
  stage.check('an envelope for each of the two devices was stored with the session', envelopesWritten === 2);

  await alice.send(conversationId, 'Hello Bob, can you read this?');
  const session = await bob.openSession(conversationId, sessionId);
  stage.check(
    "bob's device derived the session key from identity key, ephemeral key and envelope",
    session.origin === 'read',
  );
  const [message] = await bob.messages(conversationId);
  stage.check(
    "bob's device decrypts alice's message",
    message !== undefined && 'text' in message && message.text === 'Hello Bob, can you read this?',
  );
  return { alice, bob, conversationId, sessionId };
}
