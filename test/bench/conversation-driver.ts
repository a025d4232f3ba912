import { randomUUID } from 'node:crypto';
import { type Notification, NotificationKind } from '@keytrail/contracts';
import { messageText, type Session } from '@keytrail/crypto';
import { nodePrimitives } from '@keytrail/crypto/node';
import { type BenchDevice, registerDevice, type Services } from './device.ts';
import { groupRequest, listedUser } from './group-request.ts';

/**
 * Devices that make groups, and devices that are told of messages in one: a process of its own. Says `fanout` with the milliseconds from the
 * call of SendMessage to the notification of the last device, message by message, and `create` with those of CreateConversation.
 */
interface Plan {
  readonly services: Services;
  readonly what: 'fanout' | 'create';
  readonly members: number;
  readonly devicesEach: number;
  readonly warmUps: number;
  readonly rounds: number;
}

const plan = JSON.parse(process.env.KEYTRAIL_BENCH_PLAN ?? '') as Plan;
const timeoutMs = 10_000;
const atOnce = 32;
const users = await aFewAtATime(
  Array.from({ length: plan.members }, (_, n) => `${plan.what}-${n}`),
  async (userId) => {
    const first = await registerDevice(plan.services, userId, 'device-0');
    const others = Array.from({ length: plan.devicesEach - 1 }, (_, n) => `device-${n + 1}`);
    return [
      first,
      ...(await Promise.all(others.map((id) => registerDevice(plan.services, userId, id, first.rootKey)))),
    ];
  },
);
const [creator] = users[0] as [BenchDevice];
const listed = await aFewAtATime(users, ([first]) => listedUser(first as BenchDevice));
process.stdout.write(`${JSON.stringify({ event: 'ready' })}\n`);
const ms = plan.what === 'fanout' ? await measureFanout() : await measureCreation();
process.stdout.write(`${JSON.stringify({ event: 'measured', ms: ms.slice(plan.warmUps) })}\n`);
process.exit();

async function measureCreation(): Promise<number[]> {
  const found: number[] = [];
  const expected = plan.members * plan.devicesEach;
  for (let n = 0; n < plan.warmUps + plan.rounds; n += 1) {
    const { request } = groupRequest(creator, listed);
    const startedAt = performance.now();
    const { envelopesWritten } = await creator.conversation.createConversation(request);
    found.push(performance.now() - startedAt);
    if (envelopesWritten !== expected) throw new Error(`${envelopesWritten} envelopes of ${expected}`);
  }
  return found;
}

/** One message after the other: a notification does not say which message it is about. */
async function measureFanout(): Promise<number[]> {
  const { request, session } = groupRequest(creator, listed);
  await creator.conversation.createConversation(request);
  const waiting = new Set<BenchDevice>();
  let all = Promise.withResolvers<void>();
  const told = (device: BenchDevice) => {
    if (waiting.delete(device) && waiting.size === 0) all.resolve();
  };
  const devices = users.flat();
  await aFewAtATime(devices, (device) =>
    attach(device, ({ kind, conversationId }) => {
      if (kind === NotificationKind.MESSAGE_ADDED && conversationId === session.conversationId) told(device);
    }),
  );
  const found: number[] = [];
  for (let n = 0; n < plan.warmUps + plan.rounds; n += 1) {
    all = Promise.withResolvers<void>();
    for (const device of devices) waiting.add(device);
    const late = setTimeout(() => all.reject(new Error(`${waiting.size} devices were not told`)), timeoutMs);
    const message = messageOf(session, BigInt(n));
    const startedAt = performance.now();
    await creator.conversation.sendMessage(message);
    await all.promise;
    found.push(performance.now() - startedAt);
    clearTimeout(late);
  }
  return found;
}

function messageOf(session: Session, senderCounter: bigint) {
  const ciphertext = nodePrimitives.randomBytes(256);
  const text = messageText(session, creator, senderCounter, ciphertext);
  const signature = nodePrimitives.ed25519.sign(creator.signingKey.privateKey, text);
  const { conversationId, sessionId } = session;
  return { requestId: randomUUID(), conversationId, sessionId, senderCounter, ciphertext, signature };
}

/** Resolves when the device is online, and stays so. */
function attach(device: BenchDevice, notified: (notification: Notification) => void): Promise<void> {
  const attached = Promise.withResolvers<void>();
  const listen = async () => {
    for await (const { message } of device.presence.attach({ attachCounter: 1n })) {
      if (message.case === 'notification') notified(message.value);
      if (message.case !== 'greeting') continue;
      const { connectionId, heartbeatIntervalMs } = message.value;
      setInterval(() => device.presence.heartbeat({ connectionId }).catch(() => {}), heartbeatIntervalMs).unref();
      attached.resolve();
    }
  };
  listen().catch(attached.reject);
  return attached.promise;
}

async function aFewAtATime<T, R>(items: readonly T[], work: (item: T) => Promise<R>): Promise<R[]> {
  const results: R[] = [];
  for (let from = 0; from < items.length; from += atOnce)
    results.push(...(await Promise.all(items.slice(from, from + atOnce).map(work))));
  return results;
}
