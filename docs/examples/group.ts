import { randomUUID } from 'node:crypto';
import { type ClientEvents, KeyMissError, type KeytrailClient } from '@keytrail/client';
import { device } from './device.ts';

// What a group needs of its application after it was made: nothing. bin/with-node node docs/examples/group.ts .local/up.env
const run = randomUUID().slice(0, 8);
const [a, b, c] = [`alice-${run}`, `bob-${run}`, `carol-${run}`];
const [alice, bob, carol] = [device(a, 'laptop'), device(b, 'phone'), device(c, 'phone')];
await Promise.all([alice, bob, carol].map((each) => each.register()));
await Promise.all([alice, bob, carol].map((each) => each.attach()));

const { conversationId } = await alice.createConversation({ kind: 'group', members: [b, c] });
const { text } = await heard(bob, () => alice.send(conversationId, 'for the three of us'));
console.log(`bob was given «${text}»`);

// Somebody leaves: the rotation is due, one device that is online is asked for it and makes it.
const rotated = Promise.any([happens(alice, 'rotated'), happens(bob, 'rotated')]);
await alice.removeMembers(conversationId, [c]);
await rotated;
const { epoch, sessionId } = await bob.getConversation(conversationId);
console.log(`carol was removed; epoch 1 became ${epoch}`);
const refused = await carol.openSession(conversationId, sessionId).catch((error: unknown) => error);
console.log(`carol and the new key: ${refused instanceof KeyMissError ? refused.cause : refused}`);

// A second device of bob: it asks for the keys of all epochs that are his, and those who have them answer.
for (let n = 0; n < 10; n += 1) await alice.createConversation({ kind: 'group', members: [b] });
const tablet = device(b, 'tablet');
const link = await tablet.createLinkRequest();
await tablet.registerApproved(await bob.approveDevice(link, await tablet.linkCode(link)));
const all = happens(tablet, 'keysWanted', ({ left }) => left === 0);
await tablet.attach();
const { delivered, refused: none } = await all;
console.log(`the tablet has ${delivered} keys, ${none} were refused`);
const [first] = await tablet.messages(conversationId);
console.log(`on the tablet: ${first && 'text' in first ? first.text : first?.error.message}`);
await Promise.all([alice, bob, carol, tablet].map((each) => each.close()));

function happens<Name extends keyof ClientEvents>(
  client: KeytrailClient,
  name: Name,
  wanted: (event: ClientEvents[Name]) => boolean = () => true,
): Promise<ClientEvents[Name]> {
  return new Promise((resolve) => {
    const off = client.on(name, (event) => {
      if (!wanted(event)) return;
      off();
      resolve(event);
    });
  });
}

/** The message that a client is given because of what is done. */
async function heard(client: KeytrailClient, done: () => Promise<unknown>): Promise<{ text: string }> {
  const given = new Promise<{ text: string }>((resolve, reject) => {
    client.onMessage((message) => ('text' in message ? resolve(message) : reject(message.error)));
  });
  await done();
  return given;
}
