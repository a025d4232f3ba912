import { randomUUID } from 'node:crypto';
import { device } from './device.ts';

// Devices that come and go, and identities that can be checked: bin/with-node node docs/examples/identities.ts .local/up.env
const run = randomUUID().slice(0, 8);
const [a, b] = [`alice-${run}`, `bob-${run}`];
const laptop = device(a, 'laptop');
const bob = device(b, 'phone');
await Promise.all([laptop.register(), bob.register()]);
await Promise.all([laptop.attach(), bob.attach()]);
const { conversationId } = await laptop.createConversation({ kind: 'direct', members: [b] });

// A second device: it shows a text and a short code, the first one approves them, and the root key travels sealed.
const phone = device(a, 'phone');
const link = await phone.createLinkRequest();
const code = await phone.linkCode(link);
await phone.registerApproved(await laptop.approveDevice(link, code));
console.log(`linked with the code ${code}`);

// Both sides of a conversation compare the same number, over a channel of their own.
const mine = (await laptop.safetyNumber(b)).digits;
const theirs = (await bob.safetyNumber(a)).digits;
console.log(`safety number ${mine}: ${mine === theirs ? 'the same on both sides' : 'DIFFERENT'}`);

// The user keeps this; with it alone, a device can be registered when all others are lost.
const recoveryKey = await laptop.makeRecoveryKey();
const tablet = device(a, 'tablet');
await tablet.recover(recoveryKey);
console.log('recovered on the tablet');

// The laptop was stolen: its streams end, and the next message is under a key that it never gets.
const ended = new Promise((resolve) => laptop.on('revoked', resolve));
await tablet.revokeDevice('laptop');
await ended;
const before = (await bob.getConversation(conversationId)).epoch;
const { epoch } = await bob.send(conversationId, 'to those who are left');
console.log(`the laptop is revoked; epoch ${before} became ${epoch}`);

// Another root key is told to every peer, and changes the safety number.
const { revoked } = await tablet.changeRootKey();
await bob.acceptRootKey(a, (await tablet.rootKeyOf(a)) as Uint8Array);
const changed = (await bob.safetyNumber(a)).digits;
console.log(
  `root key changed, ${revoked.length} devices revoked by it; the safety number ${changed === mine ? 'is the SAME' : 'is another one'}`,
);
await Promise.all([laptop, phone, tablet, bob].map((each) => each.close()));
