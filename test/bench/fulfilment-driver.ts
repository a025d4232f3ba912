import { randomUUID } from 'node:crypto';
import { create } from '@bufbuild/protobuf';
import { timestampFromDate } from '@bufbuild/protobuf/wkt';
import {
  ConversationKind,
  type Device,
  HistoryPolicy,
  InitialSessionSchema,
  type KeyRequest,
  KeyRequestKind,
  KeyRequestRole,
  MemberRole,
  type Notification,
  NotificationKind,
} from '@keytrail/contracts';
import {
  deriveConversationId,
  keyCommitment,
  openEnvelope,
  rosterHash,
  type Session,
  sealEnvelope,
  signHeader,
  signRosterChange,
  type VerifiedRecipient,
  verifyDevice,
  verifyHeader,
} from '@keytrail/crypto';
import { nodePrimitives } from '@keytrail/crypto/node';
import { type BenchDevice, registerDevice, type Services } from './device.ts';

/**
 * Devices that ask for keys at a steady rate, and devices that have them and answer: a process of its own, so that what it costs is
 * not part of what it measures more than the machine makes it. Says `ready`, then `measured` with the milliseconds of each request
 * from the call of RequestKey to the opened key.
 */
interface Plan {
  readonly services: Services;
  readonly pairs: number;
  readonly perSecond: number;
  readonly warmUpSeconds: number;
  readonly seconds: number;
}

const plan = JSON.parse(process.env.KEYTRAIL_BENCH_PLAN ?? '') as Plan;
const { services } = plan;
const requesterCount = 24;
const timeoutMs = 10_000;

/** A session whose key the holder has and the new devices of one user lack. */
interface HeldSession {
  readonly holder: BenchDevice;
  readonly session: Session;
  readonly sessionKey: Uint8Array;
}

interface Pair {
  readonly held: HeldSession;
  readonly requester: BenchDevice;
}

interface Outcome {
  readonly ms: number;
  readonly late: number;
}

const held = new Map<string, HeldSession>();
const waiting = new Map<string, () => void>();
const answering = new Set<string>();
const recipients = new Map<string, { readonly proof: string; readonly recipient: VerifiedRecipient }>();
const faults: string[] = [];

process.once('uncaughtException', (error) => {
  console.error(`${error.stack}\nfaults before: ${faults.join('; ')}`);
  process.exit(1);
});
const pairs = await prepare();
say({ event: 'ready', pairs: pairs.length });
const warm = pairs.splice(0, plan.warmUpSeconds * plan.perSecond);
await openLoop(warm);
say({ event: 'warm' });
const startedAt = performance.now();
const outcomes = await openLoop(pairs.slice(0, plan.seconds * plan.perSecond));
say({
  event: 'measured',
  ms: outcomes.map(({ ms }) => ms),
  lateMs: Math.max(...outcomes.map(({ late }) => late)),
  seconds: (performance.now() - startedAt) / 1000,
  processor: process.cpuUsage(),
  faults,
});
process.exit();

async function prepare(): Promise<Pair[]> {
  const made = await Promise.all(
    Array.from({ length: requesterCount }, async (_, n) => {
      const [holder, old] = await Promise.all([
        registerDevice(services, `holder-${n}`, 'laptop'),
        registerDevice(services, `requester-${n}`, 'old-phone'),
      ]);
      const sessions: HeldSession[] = [];
      const conversations = Math.ceil(plan.pairs / requesterCount);
      for (let c = 0; c < conversations; c += 1) sessions.push(await createConversation(holder, old));
      // One new device for each user: a second one would, once it has a key, be a holder for the first.
      const requester = await registerDevice(services, old.userId, 'new-phone', old.rootKey);
      await attach(holder, (notification) => {
        if (notification.kind === NotificationKind.KEY_OFFERED) answerOffers(holder, notification).catch(noteFault);
      });
      await attach(requester, ({ kind, conversationId }) => {
        if (kind !== NotificationKind.KEY_DELIVERED) return;
        waiting.get(keyOf(conversationId, requester))?.();
      });
      return sessions.map((session) => ({ held: session, requester }));
    }),
  );
  // In turns, so that no device has two requests close together.
  const longest = Math.max(...made.map((each) => each.length));
  return Array.from({ length: longest }, (_, i) => made.flatMap((each) => each[i] ?? [])).flat();
}

async function createConversation(holder: BenchDevice, old: BenchDevice): Promise<HeldSession> {
  const requestId = randomUUID();
  const conversationId = deriveConversationId(holder.userId, requestId);
  const sessionId = `session_${randomUUID()}`;
  const sessionKey = nodePrimitives.randomBytes(32);
  const ephemeralKey = nodePrimitives.x25519.keyPair();
  const members = [
    { userId: holder.userId, role: MemberRole.ADMIN },
    { userId: old.userId, role: MemberRole.MEMBER },
  ];
  const { signedHeader, session } = signHeader(nodePrimitives, holder.signingKey, {
    suite: 1,
    conversationId,
    sessionId,
    epoch: 1n,
    rosterVersion: 1n,
    rosterHash: rosterHash(members),
    deviceLists: members.map(({ userId }) => ({ userId, version: 1n })),
    initiator: { userId: holder.userId, deviceId: holder.deviceId },
    initiatorIdentityKey: holder.identityKey.publicKey,
    initiatorSigningKey: holder.signingKey.publicKey,
    initiatorEphemeralKey: ephemeralKey.publicKey,
    keyCommitment: keyCommitment(sessionKey, { conversationId, sessionId, epoch: 1n }),
    historyPolicy: HistoryPolicy.OWN_MEMBERSHIP,
    previousHeaderHash: new Uint8Array(),
    createdAt: timestampFromDate(new Date()),
  });
  // The two share nothing yet: each tells its own devices.
  const own = [holder, old].map(({ identityKeys, userId }) => identityKeys.getDevices({ userIds: [userId] }));
  const envelopes = (await Promise.all(own))
    .flatMap((answer) => answer.deviceLists)
    .flatMap(({ devices, rootKey }) =>
      devices.map((device) =>
        sealEnvelope({
          primitives: nodePrimitives,
          sealer: holder,
          recipient: verifyDevice(nodePrimitives, device, rootKey),
          session,
          attempt: 0,
          ephemeralKey,
          sessionKey,
        }),
      ),
    );
  await holder.conversation.createConversation({
    requestId,
    kind: ConversationKind.GROUP,
    members,
    initialSession: create(InitialSessionSchema, {
      signedHeader,
      initiatorCertificate: holder.certificate,
      envelopes,
      withholdings: [],
    }),
    signedRoster: signRosterChange(nodePrimitives, holder, {
      conversationId,
      rosterVersion: 1n,
      previousHash: new Uint8Array(),
      added: members,
      permissions: {
        addMembers: MemberRole.ADMIN,
        removeMembers: MemberRole.ADMIN,
        changePolicy: MemberRole.ADMIN,
      },
      historyPolicy: HistoryPolicy.OWN_MEMBERSHIP,
      madeAt: new Date(),
    }),
  });
  const made = { holder, session, sessionKey };
  held.set(conversationId, made);
  return made;
}

/** Resolves when the device is online, and stays so. */
function attach(device: BenchDevice, notified: (notification: Notification) => void): Promise<void> {
  return new Promise((resolve, reject) => {
    const listen = async () => {
      for await (const { message } of device.presence.attach({ attachCounter: 1n })) {
        if (message.case === 'notification') notified(message.value);
        if (message.case !== 'greeting') continue;
        const { connectionId, heartbeatIntervalMs } = message.value;
        setInterval(() => device.presence.heartbeat({ connectionId }).catch(noteFault), heartbeatIntervalMs).unref();
        resolve();
      }
      throw new Error(`the stream of ${device.userId} ended`);
    };
    listen().catch((error) => {
      noteFault(error);
      reject(error);
    });
  });
}

type Offered = Pick<KeyRequest, 'keyRequestId' | 'attempt' | 'conversationId' | 'requester'>;

/** What the SDK does when it is told of an offer: of a single one the notification says all, several are listed. */
async function offersOf(holder: BenchDevice, notification: Notification): Promise<readonly Offered[]> {
  const { offers, keyRequestId, attempt, requester } = notification;
  if (offers === 1 && keyRequestId !== '' && attempt > 0 && requester) return [notification];
  return (await holder.session.listKeyRequests({ role: KeyRequestRole.HOLDER })).keyRequests;
}

/** Looks at what was offered, checks the requester's device, seals, hands in. */
async function answerOffers(holder: BenchDevice, notification: Notification): Promise<void> {
  await Promise.all(
    (await offersOf(holder, notification)).map(async ({ keyRequestId, attempt, conversationId, requester }) => {
      const having = held.get(conversationId);
      const offer = `${keyRequestId} ${attempt}`;
      if (!having || !requester || answering.has(offer)) return;
      answering.add(offer);
      const { deviceLists } = await holder.identityKeys.getDevices({
        userIds: [requester.userId],
        includeRevoked: true,
      });
      const [list] = deviceLists;
      const device = list?.devices.find(({ deviceId }) => deviceId === requester.deviceId);
      if (!list || !device || device.revokedAt) throw new Error('the requester is not listed');
      const envelope = sealEnvelope({
        primitives: nodePrimitives,
        sealer: holder,
        recipient: recipientOf(device, list.rootKey),
        session: having.session,
        attempt,
        sessionKey: having.sessionKey,
      });
      await holder.session.fulfillKeyRequest({ requestId: randomUUID(), keyRequestId, attempt, envelope });
    }),
  );
}

/** As in the SDK, a device that is listed as it was before is not verified again. */
function recipientOf(device: Device, rootKey: Uint8Array): VerifiedRecipient {
  const { identityKey, signingKey, certificate, signedPrekey, lastResortPrekey } = device;
  const proof = [
    rootKey,
    identityKey,
    signingKey,
    certificate?.signature,
    signedPrekey?.publicKey,
    signedPrekey?.signature,
    lastResortPrekey?.publicKey,
    lastResortPrekey?.signature,
  ]
    .map((part) => Buffer.from(part ?? []).toString('base64'))
    .join(' ');
  const name = `${device.userId} ${device.deviceId}`;
  const known = recipients.get(name);
  if (known?.proof === proof) return known.recipient;
  const recipient = verifyDevice(nodePrimitives, device, rootKey);
  recipients.set(name, { proof, recipient });
  return recipient;
}

/** Starts one request after the other at the set rate, whether those before have been answered or not. */
async function openLoop(of: readonly Pair[]): Promise<Outcome[]> {
  const start = performance.now();
  return Promise.all(
    of.map(async (pair, n) => {
      const due = start + (n * 1000) / plan.perSecond;
      await new Promise((resolve) => setTimeout(resolve, Math.max(0, due - performance.now())));
      const late = performance.now() - due;
      return { ms: await askForKey(pair), late };
    }),
  );
}

async function askForKey({ held: { holder, session, sessionKey }, requester }: Pair): Promise<number> {
  const { conversationId, sessionId } = session;
  const delivered = new Promise<void>((resolve, reject) => {
    waiting.set(keyOf(conversationId, requester), resolve);
    setTimeout(() => reject(new Error('no key came')), timeoutMs).unref();
  });
  const startedAt = performance.now();
  await requester.session.requestKey({
    requestId: randomUUID(),
    conversationId,
    sessionId,
    kind: KeyRequestKind.MISSING,
  });
  await delivered;
  const answer = await requester.session.getInitialSession({ conversationId, sessionId });
  const { signedHeader, envelope } = answer;
  if (!signedHeader || !envelope) throw new Error('an answer without header or envelope');
  const rootKey = holder.rootKey.publicKey;
  const verified = verifyHeader(
    nodePrimitives,
    signedHeader,
    { certificate: holder.certificate, rootKey },
    { conversationId, sessionId, epoch: answer.epoch },
  );
  const opened = openEnvelope({
    primitives: nodePrimitives,
    envelope,
    session: verified,
    rootKey,
    recipient: {
      userId: requester.userId,
      deviceId: requester.deviceId,
      identityKey: requester.identityKey,
      signingKey: requester.signingKey.publicKey,
      signedPrekey: requester.signedPrekey.keyPair,
      kemPrekey: requester.lastResortPrekey.keyPair,
    },
  });
  const ms = performance.now() - startedAt;
  if (!Buffer.from(opened).equals(sessionKey)) throw new Error('the key that was opened is another one');
  waiting.delete(keyOf(conversationId, requester));
  await requester.session.ackKey({ conversationId, sessionId, attempt: envelope.attempt });
  return ms;
}

function keyOf(conversationId: string, { userId, deviceId }: { userId: string; deviceId: string }): string {
  return `${conversationId} ${userId} ${deviceId}`;
}

function noteFault(error: unknown): void {
  if (faults.length < 10) faults.push(error instanceof Error ? error.message : String(error));
}

function say(line: object): void {
  process.stdout.write(`${JSON.stringify(line)}\n`);
}
