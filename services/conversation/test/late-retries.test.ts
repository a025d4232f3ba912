import { randomUUID } from 'node:crypto';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createClient } from '@connectrpc/connect';
import { ConversationService } from '@keytrail/contracts';
import { type ProcessHandle, startProcess } from '@keytrail/local';
import { createGrpcTransport, type GrpcTransport } from '@keytrail/rpc';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import {
  type ConversationClient,
  createdBy,
  creation,
  type Harness,
  refusalOf,
  rotation,
  startHarness,
  type TestDevice,
} from './harness.ts';

let harness: Harness;
let logs: string;
const stopping: (() => Promise<unknown> | unknown)[] = [];

beforeAll(async () => {
  harness = await startHarness();
  logs = mkdtempSync(join(tmpdir(), 'keytrail-conversation-'));
}, 120_000);

afterEach(async () => {
  harness.beforeStore = async () => {};
  for (const stop of stopping.splice(0).reverse()) await stop();
});

afterAll(async () => {
  await harness?.[Symbol.asyncDispose]();
  rmSync(logs, { recursive: true, force: true });
});

/** Another process of the service; `as` calls it as a device. */
async function anotherProcess(environment: Record<string, string> = {}) {
  const started: ProcessHandle = await startProcess({
    name: 'conversation',
    args: ['services/conversation/src/main.ts'],
    logFile: join(logs, `${randomUUID()}.log`),
    env: { ...harness.environment(), ...environment },
  });
  stopping.push(() => started.stop());
  const { grpcPort } = await started.waitForLine((line) => line.event === 'listening');
  return {
    async as(device: TestDevice): Promise<ConversationClient> {
      const token = await harness.issuer.token(device);
      const transport: GrpcTransport = createGrpcTransport({
        target: `127.0.0.1:${grpcPort}`,
        authorization: () => `Bearer ${token}`,
        retry: { retries: 0 },
      });
      stopping.push(() => transport.close());
      return createClient(ConversationService, transport);
    },
  };
}

/** The answers to calls, or what they were refused with. */
async function outcomes<T>(calls: readonly Promise<T>[]): Promise<{ answers: T[]; refusals: string[] }> {
  const settled = await Promise.allSettled(calls);
  return {
    answers: settled.flatMap((each) => (each.status === 'fulfilled' ? [each.value] : [])),
    refusals: await Promise.all(
      settled.flatMap((each) =>
        each.status === 'rejected' ? [refusalOf(Promise.reject(each.reason)).then(({ reason }) => reason)] : [],
      ),
    ),
  };
}

describe('a retry that comes after the reconciler gave the session up', () => {
  it('of a creation is told so by every process, however many come at once, and leaves nothing behind', async () => {
    const [alice, bob] = [await harness.user(), await harness.user()];
    const other = await (await anotherProcess()).as(alice.device);
    const { request, session } = creation(harness, alice.device, [bob]);
    const { conversationId, sessionId } = session;
    harness.beforeStore = async () => {
      throw new Error('the peer is gone');
    };
    await refusalOf(alice.device.client.createConversation(request));
    harness.beforeStore = async () => {};
    expect(await harness.reconcile()).toMatchObject({ aborted: 1 });

    const calls = Array.from({ length: 8 }, (_, index) =>
      (index % 2 === 0 ? alice.device.client : other).createConversation(request),
    );
    expect((await outcomes(calls)).refusals).toEqual(Array(8).fill('SESSION_ABORTED'));
    expect(harness.stored.has(`${conversationId}/${sessionId}`)).toBe(false);
    expect(await refusalOf(bob.device.client.getConversation({ conversationId }))).toMatchObject({
      reason: 'NOT_FOUND_OR_NOT_PERMITTED',
    });
    await createdBy(harness, alice.device, [bob]);
  });

  it('of a rotation is told so too, and the epoch stays free for another session', async () => {
    const [alice, bob] = [await harness.user(), await harness.user()];
    const { conversation } = await createdBy(harness, alice.device, [bob]);
    const other = await (await anotherProcess()).as(alice.device);
    const { request, session } = rotation(harness, alice.device, conversation);
    harness.beforeStore = async () => {
      throw new Error('the peer is gone');
    };
    await refusalOf(alice.device.client.rotateSession(request));
    harness.beforeStore = async () => {};
    expect(await harness.reconcile()).toMatchObject({ aborted: 1 });

    const calls = Array.from({ length: 8 }, (_, index) =>
      (index % 2 === 0 ? alice.device.client : other).rotateSession(request),
    );
    expect((await outcomes(calls)).refusals).toEqual(Array(8).fill('SESSION_ABORTED'));
    expect(harness.stored.has(`${session.conversationId}/${session.sessionId}`)).toBe(false);
    const next = rotation(harness, bob.device, conversation);
    expect((await bob.device.client.rotateSession(next.request)).conversation).toMatchObject({
      epoch: 2n,
      sessionId: next.session.sessionId,
    });
  });

  it('is told so also when the session was on its way to the service session all the while', async () => {
    const alice = await harness.user();
    const { request, session } = creation(harness, alice.device, []);
    const reached = Promise.withResolvers<void>();
    const opened = Promise.withResolvers<void>();
    harness.beforeStore = async () => {
      reached.resolve();
      await opened.promise;
    };
    const late = refusalOf(alice.device.client.createConversation(request));
    await reached.promise;
    expect(await harness.reconcile()).toMatchObject({ aborted: 1 });
    opened.resolve();
    expect(await late).toMatchObject({ reason: 'SESSION_ABORTED', metadata: { session_id: session.sessionId } });
    expect(harness.stored.has(`${session.conversationId}/${session.sessionId}`)).toBe(false);
    await harness.reconcile();
    expect(await harness.query('SELECT 1 FROM candidates')).toEqual([]);
  });
});

it('retries of creations and rotations, through two processes, race a reconciler that gives up at once: whole or nothing, and one answer', async () => {
  const alice = await harness.user();
  const other = await (
    await anotherProcess({ KEYTRAIL_CANDIDATE_AGE_MS: '1', KEYTRAIL_RECONCILE_INTERVAL_MS: '1' })
  ).as(alice.device);
  const clients = [alice.device.client, other, alice.device.client];
  const there = await Promise.all(
    Array.from({ length: 8 }, async () => {
      for (;;) {
        const made = await createdBy(harness, alice.device, []).catch(() => undefined);
        if (made) return made.conversation;
      }
    }),
  );
  const creations = Array.from({ length: 12 }, () => creation(harness, alice.device, []));
  const rotations = there.map((conversation) => rotation(harness, alice.device, conversation));
  const raced = await Promise.all([
    ...creations.map(async ({ request, session }) => ({
      session,
      ...(await outcomes(clients.map((client) => client.createConversation(request)))),
    })),
    ...rotations.map(async ({ request, session }) => ({
      session,
      ...(await outcomes(clients.map((client) => client.rotateSession(request)))),
    })),
  ]);
  await harness.reconcile();
  for (const { session, answers, refusals } of raced) {
    const { conversationId, sessionId, epoch } = session;
    expect([answers.length, refusals.length]).toEqual(answers.length > 0 ? [3, 0] : [0, 3]);
    expect(new Set(refusals)).toEqual(new Set(answers.length > 0 ? [] : ['SESSION_ABORTED']));
    const rows = await harness.query<{ session_id: string }>(
      'SELECT session_id FROM epochs WHERE conversation_id = $1 AND epoch = $2',
      conversationId,
      epoch,
    );
    expect(rows).toEqual(answers.length > 0 ? [{ session_id: sessionId }] : []);
    expect(harness.stored.has(`${conversationId}/${sessionId}`)).toBe(answers.length > 0);
  }
  expect(await harness.query('SELECT 1 FROM candidates')).toEqual([]);
}, 60_000);
