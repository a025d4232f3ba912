import { randomUUID } from 'node:crypto';
import { createClient } from '@connectrpc/connect';
import { KeyMissError } from '@keytrail/client';
import { KeyRequestKind, KeyRequestRole, KeyRequestState, SessionService } from '@keytrail/contracts';
import { forgeDevice } from '@keytrail/local/forged-device';
import { createGrpcTransport, readRefusal } from '@keytrail/rpc';
import { readSettings } from '@keytrail/settings';
import { startTelemetry, telemetrySettings } from '@keytrail/telemetry';
import { fetchTrace, type TraceTree } from '@keytrail/traces';
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { someone, startWorld, type World } from './world.ts';

let world: World;

beforeAll(async () => {
  world = await startWorld({
    name: 'test-recovery',
    replicas: { session: 2, presence: 2 },
    env: {
      KEYTRAIL_GATEWAY_LEASE_MS: '1500',
      KEYTRAIL_GATEWAY_RENEW_MS: '300',
      // A holder on a loaded machine keeps its turn: which attempt is whose is part of what is tested.
      KEYTRAIL_KEY_REQUEST_HEDGE_MS: '5000',
    },
  });
});
afterAll(async () => {
  await world?.[Symbol.asyncDispose]();
});

/** Two users in a conversation with one message, and the second user's phone online. */
async function pair() {
  const [a, b] = [someone('alice'), someone('bob')];
  const alice = await world.online(a, 'phone');
  const bob = await world.online(b, 'phone');
  const { conversationId, sessionId } = await alice.createConversation({ kind: 'direct', members: [b] });
  await alice.send(conversationId, 'hello');
  return { a, b, alice, bob, conversationId, sessionId };
}

function sessionAs(userId: string, deviceId: string) {
  const transport = createGrpcTransport({
    target: world.constellation.grpcTarget('session'),
    authorization: async () => `Bearer ${await world.constellation.issuer.token({ userId, deviceId })}`,
  });
  return createClient(SessionService, transport);
}

describe('a device that came later', () => {
  test('gets the key from a holder that is online, over two replicas of session and presence', async () => {
    const { b, bob, conversationId, sessionId } = await pair();
    const tablet = await world.further(bob, b, 'tablet');
    await tablet.attach();
    const opened = await tablet.openSession(conversationId, sessionId);
    expect(opened).toMatchObject({ origin: 'recovered', attempt: 1 });
    expect(await tablet.messages(conversationId)).toMatchObject([{ text: 'hello' }]);
  });

  test('waits while everybody is offline, and gets the key when a holder attaches', async () => {
    const { b, alice, bob, conversationId, sessionId } = await pair();
    const tablet = await world.further(bob, b, 'tablet');
    await Promise.all([alice.detach(), bob.detach()]);
    await tablet.attach();
    const request = await tablet.requestKey(conversationId, sessionId);
    expect(request.recovery).toBe('PENDING_NO_HOLDER_ONLINE');
    const delivered = new Promise((resolve) => tablet.on('keyDelivered', resolve));
    await alice.attach();
    await delivered;
    expect(await tablet.messages(conversationId)).toMatchObject([{ text: 'hello' }]);
  });

  test('recovers once for many who wait at the same time', async () => {
    const { b, bob, conversationId, sessionId } = await pair();
    const tablet = await world.further(bob, b, 'tablet');
    await tablet.attach();
    const opened = await Promise.all(Array.from({ length: 10 }, () => tablet.openSession(conversationId, sessionId)));
    expect(new Set(opened.map((each) => each.attempt))).toEqual(new Set([1]));
    const requests = await tablet.keyRequests({ includeEnded: true });
    expect(requests).toHaveLength(1);
  });

  test('gets the key although session is killed in the middle and started again', async () => {
    const { b, alice, bob, conversationId, sessionId } = await pair();
    const tablet = await world.further(bob, b, 'tablet');
    await Promise.all([alice.detach(), bob.detach()]);
    await tablet.attach();
    await tablet.requestKey(conversationId, sessionId);
    const delivered = new Promise((resolve) => tablet.on('keyDelivered', resolve));
    for (const replica of world.constellation.of('session')) await replica.process.kill('SIGKILL');
    for (const replica of world.constellation.of('session')) await replica.process.restart();
    await bob.attach();
    await delivered;
    expect(await tablet.messages(conversationId)).toMatchObject([{ text: 'hello' }]);
  });
});

/** What a hostile database can do: mallory's device becomes bob's, with an entry of the log that names bob's root key and cannot be signed by it. */
async function addPhantom(b: string): Promise<void> {
  const m = someone('mallory');
  await world.device(m, 'phantom').register();
  await forgeDevice(world.constellation.databaseUrls['identity-keys'], { from: m, to: b });
}

describe('I9: the server cannot add a reader unseen', () => {
  test('a device that no root key certifies gets no key from any holder, whatever the database says', async () => {
    const { b, conversationId, sessionId } = await pair();
    await addPhantom(b);
    const phantom = sessionAs(b, 'phantom');
    const { keyRequest } = await phantom.requestKey({
      requestId: randomUUID(),
      conversationId,
      sessionId,
      kind: KeyRequestKind.MISSING,
    });
    for (;;) {
      const { keyRequests } = await phantom.listKeyRequests({ role: KeyRequestRole.REQUESTER, includeEnded: true });
      const request = keyRequests.find((each) => each.keyRequestId === keyRequest?.keyRequestId);
      expect(request?.state).not.toBe(KeyRequestState.FULFILLED);
      if (request?.state === KeyRequestState.UNFULFILLABLE) break;
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
    await expect(phantom.getInitialSession({ conversationId, sessionId })).rejects.toSatisfy(
      (error) => readRefusal(error).miss !== undefined,
    );
  });

  test('no session is made with such a device, and the application is told whose list it is', async () => {
    const { b, alice, conversationId, sessionId } = await pair();
    await addPhantom(b);
    const told = new Promise((resolve) => alice.on('deviceListRefused', resolve));
    await expect(alice.rotate(conversationId)).rejects.toMatchObject({ problem: 'certificate', userId: b });
    expect(await told).toMatchObject({ userId: b, problem: 'certificate' });
    expect((await alice.getConversation(conversationId)).sessionId).toBe(sessionId);
  });

  test('a swapped key is noticed by its commitment, reported, and replaced', async () => {
    const { b, bob, conversationId, sessionId } = await pair();
    const database = new pg.Client({ connectionString: world.constellation.databaseUrls.session });
    await database.connect();
    // What a hostile database can do: another envelope under a header that it cannot sign.
    await database.query(
      `ALTER TABLE envelopes DISABLE TRIGGER USER;
       UPDATE envelopes SET ciphertext = decode(repeat('00', 48), 'hex') WHERE user_id = '${b}';
       ALTER TABLE envelopes ENABLE TRIGGER USER`,
    );
    await database.end();
    const opened = await bob.openSession(conversationId, sessionId);
    expect(opened.attempt).toBeGreaterThan(0);
    expect(await bob.messages(conversationId)).toMatchObject([{ text: 'hello' }]);
  });
});

describe('I10: a stranger', () => {
  test('gets one uniform answer, for what exists and for what does not', async () => {
    const { conversationId, sessionId } = await pair();
    const stranger = sessionAs(someone('eve'), 'phone');
    const answers = await Promise.all(
      [
        { conversationId, sessionId },
        { conversationId, sessionId: 'no-such-session' },
        { conversationId: randomUUID(), sessionId },
      ].map((request) =>
        stranger.getInitialSession(request).then(
          () => undefined,
          (error: unknown) => {
            const { code, reason, metadata, fields, retryAfterMs, miss } = readRefusal(error);
            const { trace_id: _, ...rest } = metadata;
            return { code, reason, rest, fields, retryAfterMs, miss, message: (error as Error).message };
          },
        ),
      ),
    );
    expect(answers[0]?.reason).toBe('NOT_FOUND_OR_NOT_PERMITTED');
    expect(answers[0]).toEqual(answers[1]);
    expect(answers[0]).toEqual(answers[2]);
  });
});

describe('the trace of a miss and its cure', () => {
  test('is one tree without orphans over all services, PostgreSQL, Redis and NATS, with the cause at the hop that missed', async () => {
    // The devices record spans of their own, so that the tree begins where the user waits.
    const telemetry = startTelemetry({
      service: 'devices',
      config: readSettings(telemetrySettings, {
        KEYTRAIL_ENVIRONMENT: 'development',
        KEYTRAIL_LOG_LEVEL: 'silent',
        KEYTRAIL_OTLP_URL: world.constellation.traces.url,
        KEYTRAIL_TRACE_RATIO: '1',
      }),
    });
    try {
      const { b, bob, conversationId, sessionId } = await pair();
      const tablet = await world.further(bob, b, 'tablet');
      await tablet.attach();
      const { origin, traceId = '' } = await tablet.openSession(conversationId, sessionId);
      expect(origin).toBe('recovered');

      const services = ['devices', 'session', 'conversation', 'identity-keys', 'presence'];
      const complete = (current: TraceTree) =>
        current.orphans.length === 0 &&
        services.every((service) => current.services.includes(service)) &&
        current.spans.some((span) => span.name.includes('AckKey') && span.service === 'session');
      const tree = await fetchTrace(world.constellation.traces.url, traceId, { until: complete, timeoutMs: 20_000 });
      expect(tree.orphans).toEqual([]);
      expect(tree.roots).toHaveLength(1);
      expect([...tree.services].sort()).toEqual([...services].sort());
      const systems = new Set(
        tree.spans.flatMap(({ attributes }) => [attributes['db.system.name'], attributes['messaging.system.name']]),
      );
      for (const system of ['postgresql', 'redis', 'nats']) expect(systems).toContain(system);
      const missed = tree.spans.filter((span) => span.attributes['keytrail.miss.cause'] !== undefined);
      expect(missed.some((span) => span.service === 'session')).toBe(true);
      expect(new Set(missed.map((span) => span.attributes['keytrail.miss.cause']))).toEqual(
        new Set(['DEVICE_ADDED_AFTER_SESSION']),
      );
      // The cure is in it: the holder's answer hangs below the notification that reached it.
      expect(tree.spans.some((span) => span.service === 'devices' && span.name === 'answer offer')).toBe(true);
    } finally {
      await telemetry.shutdown();
    }
  });

  test('keeps the miss of a device that was not sampled, and whatever explains it', async () => {
    const { b, bob, conversationId, sessionId } = await pair();
    const tablet = await world.further(bob, b, 'tablet');
    const miss = await tablet.openSession(conversationId, sessionId, { recover: false }).then(
      () => undefined,
      (error: unknown) => error,
    );
    expect(miss).toBeInstanceOf(KeyMissError);
    const explained = ['session', 'conversation', 'identity-keys', 'presence'];
    const tree = await fetchTrace(world.constellation.traces.url, (miss as KeyMissError).traceId ?? '', {
      until: (current) => explained.every((service) => current.services.includes(service)),
      timeoutMs: 20_000,
    });
    expect([...tree.services].sort()).toEqual(explained.sort());
  });
});
