import { createClient, type KeytrailClient } from '@keytrail/client';
import { createNodeTransports, nodePrimitives } from '@keytrail/client/node';
import { type Services, tokenOf } from './device.ts';

/**
 * Keys that wait for a holder until one attaches, one after the other: a process of its own, with all devices in it, and the SDK. Says `ready`,
 * then `measured` with the milliseconds of each from the call of attach to the opened key.
 */
interface Plan {
  readonly services: Services;
  readonly rounds: number;
}

const { services, rounds } = JSON.parse(process.env.KEYTRAIL_BENCH_PLAN ?? '') as Plan;
const faults: string[] = [];

interface Waiting {
  readonly holder: KeytrailClient;
  readonly delivered: Promise<unknown>;
}

const waiting: Waiting[] = [];
for (let n = 0; n < rounds; n += 1) waiting.push(await keyThatWaits(n));
say({ event: 'ready' });

const ms: number[] = [];
for (const { holder, delivered } of waiting) {
  const startedAt = performance.now();
  await Promise.all([holder.attach(), delivered]);
  ms.push(performance.now() - startedAt);
}
say({ event: 'measured', ms, faults });
process.exit();

/** A new device of a user, attached, that asked for a key which only devices have that are not online. */
async function keyThatWaits(n: number): Promise<Waiting> {
  const member = `waiter-${n}`;
  const [holder, old, requester] = await Promise.all([
    device(`awaited-${n}`, 'laptop'),
    device(member, 'laptop'),
    device(member, 'phone'),
  ]);
  await Promise.all([holder.register(), old.register()]);
  const { conversationId, sessionId } = await holder.createConversation({ kind: 'group', members: [member] });
  const link = await requester.createLinkRequest();
  await requester.registerApproved(await old.approveDevice(link, await requester.linkCode(link)));
  const delivered = new Promise((resolve) => {
    requester.on('keyDelivered', (key) => {
      if (key.sessionId === sessionId) resolve(key);
    });
  });
  await requester.attach();
  const { state } = await requester.requestKey(conversationId, sessionId);
  if (state !== 'WAITING_FOR_HOLDER') noteFault(new Error(`the key does not wait, it is ${state}`));
  return { holder, delivered };
}

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
