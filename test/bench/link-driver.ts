import { createClient, type KeytrailClient } from '@keytrail/client';
import { createNodeTransports, nodePrimitives } from '@keytrail/client/node';
import { type Services, tokenOf } from './device.ts';

/**
 * A user in many conversations links a new device while the other one is online: a process of its own, with both devices in it. Says `ready`, then
 * `measured` with the milliseconds from the attach of the new device to the last key that it opened.
 */
interface Plan {
  readonly services: Services;
  readonly conversations: number;
}

const plan = JSON.parse(process.env.KEYTRAIL_BENCH_PLAN ?? '') as Plan;
const { services, conversations } = plan;
const user = 'linker';
const faults: string[] = [];

const [laptop, phone, peer] = await Promise.all([
  device(user, 'laptop'),
  device(user, 'phone'),
  device('peer', 'laptop'),
]);
await Promise.all([laptop.register(), peer.register()]);
await laptop.attach();
const sessionIds = new Set<string>();
for (let made = 0; made < conversations; made += 1) {
  sessionIds.add((await laptop.createConversation({ kind: 'group', members: ['peer'] })).sessionId);
}
const link = await phone.createLinkRequest();
await phone.registerApproved(await laptop.approveDevice(link, await phone.linkCode(link)));
say({ event: 'ready' });

const opened: number[] = [];
let refused = 0;
phone.on('keyRefused', ({ reason }) => {
  refused += 1;
  noteFault(new Error(`refused: ${reason}`));
});
const done = new Promise<void>((resolve) => {
  phone.on('keysWanted', ({ left }) => {
    if (left % 20 === 0) say({ event: 'progress', left, ms: performance.now() - startedAt, faults });
    if (left === 0) resolve();
  });
});
const startedAt = performance.now();
phone.on('keyDelivered', ({ sessionId }) => {
  if (sessionIds.delete(sessionId)) opened.push(performance.now() - startedAt);
});
await phone.attach();
await done;
say({ event: 'measured', ms: opened, missing: sessionIds.size, refused, processor: process.cpuUsage(), faults });
process.exit();

async function device(userId: string, deviceId: string): Promise<KeytrailClient> {
  const token = await tokenOf(services.issuer, userId, deviceId);
  const { identityKeys, conversation, session, presence } = services;
  const targets = { identityKeys, conversation, session, presence };
  const transports = createNodeTransports({ targets, token: () => token });
  const client = createClient({ user: userId, device: deviceId, transports, primitives: nodePrimitives });
  client.on('fault', ({ during, error }) => noteFault(new Error(`${during}: ${error}`)));
  return client;
}

function noteFault(error: Error): void {
  if (faults.length < 10) faults.push(error.message);
}

function say(line: object): void {
  process.stdout.write(`${JSON.stringify(line)}\n`);
}
