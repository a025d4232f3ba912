import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createClient } from '@connectrpc/connect';
import { ConversationService } from '@keytrail/contracts';
import { startProcess } from '@keytrail/local';
import { createGrpcTransport } from '@keytrail/rpc';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { type FaultPoint, readConfig } from '../src/service.ts';
import { creation, type Harness, refusalOf, startHarness, type TestDevice } from './harness.ts';

let harness: Harness;
let logs: string;

beforeAll(async () => {
  harness = await startHarness();
  logs = mkdtempSync(join(tmpdir(), 'keytrail-conversation-'));
}, 120_000);

afterAll(async () => {
  await harness?.[Symbol.asyncDispose]();
  rmSync(logs, { recursive: true, force: true });
});

/** A process of the service that dies at a point, and a client that calls it as a device. */
async function doomedProcess(device: TestDevice, point: FaultPoint) {
  const started = await startProcess({
    name: 'conversation',
    args: ['services/conversation/src/main.ts'],
    logFile: join(logs, `${point}.log`),
    env: { ...harness.environment(), KEYTRAIL_FAULT_POINT: point },
  });
  const ports = await started.waitForLine((line) => line.event === 'listening');
  const token = await harness.issuer.token(device);
  const transport = createGrpcTransport({
    target: `127.0.0.1:${ports.grpcPort}`,
    authorization: () => `Bearer ${token}`,
    retry: { retries: 0 },
  });
  return { started, transport, client: createClient(ConversationService, transport) };
}

describe('a process that is killed', () => {
  it.each<[FaultPoint, visible: boolean]>([
    ['conversation.after-candidate', false],
    ['conversation.after-store-session', false],
    ['conversation.before-commit', false],
    ['conversation.after-commit', true],
  ])(
    'at %s leaves the conversation whole or not there, and another process finishes the same request',
    async (point, visible) => {
      const [alice, bob] = [await harness.user(), await harness.user()];
      const { request, session } = creation(harness, alice.device, [bob]);
      const doomed = await doomedProcess(alice.device, point);
      try {
        await refusalOf(doomed.client.createConversation(request));
        expect((await doomed.started.exited).signal).toBe('SIGKILL');
      } finally {
        doomed.transport.close();
        await doomed.started.stop();
      }
      const { conversationId, sessionId } = session;
      const seen = await bob.device.client.getConversation({ conversationId }).then(
        (answer) => answer.conversation?.sessionId,
        () => undefined,
      );
      expect(seen).toBe(visible ? sessionId : undefined);
      const { conversation } = await alice.device.client.createConversation(request);
      expect(conversation).toMatchObject({ conversationId, sessionId, epoch: 1n });
      expect(await harness.query('SELECT 1 FROM candidates')).toHaveLength(0);
      expect(harness.stored.has(`${conversationId}/${sessionId}`)).toBe(true);
    },
    60_000,
  );
});

it('refuses a fault point outside development', () => {
  const environment = { ...harness.environment(), KEYTRAIL_FAULT_POINT: 'conversation.after-store-session' };
  expect(readConfig(environment).faultPoint).toBe('conversation.after-store-session');
  expect(() => readConfig({ ...environment, KEYTRAIL_ENVIRONMENT: 'production' })).toThrow(/outside development/);
});
