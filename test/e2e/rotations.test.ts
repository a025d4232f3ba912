import { join } from 'node:path';
import { createClient } from '@connectrpc/connect';
import { ConversationService } from '@keytrail/contracts';
import { type ProcessHandle, startProcess } from '@keytrail/local';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { someone, startWorld, type World } from './world.ts';

let world: World;

beforeAll(async () => {
  world = await startWorld({
    name: 'test-rotations',
    replicas: { conversation: 2 },
    serviceEnv: {
      conversation: {
        KEYTRAIL_ROTATION_GRACE_MS: '0',
        KEYTRAIL_ROTATION_SWEEP_MS: '100',
        KEYTRAIL_ROTATION_ASK_MS: '5000',
      },
    },
  });
});
afterAll(async () => {
  await world?.[Symbol.asyncDispose]();
});

/** A device that makes a group, and does nothing that it is asked for. */
async function silentDevice(user: string, members: readonly string[]): Promise<ProcessHandle> {
  const { constellation } = world;
  const token = await constellation.issuer.token({ userId: user, deviceId: 'phone' });
  const targets = {
    identityKeys: constellation.grpcTarget('identity-keys'),
    conversation: constellation.grpcTarget('conversation'),
    session: constellation.grpcTarget('session'),
    presence: constellation.grpcTarget('presence'),
  };
  return startProcess({
    name: 'a silent device',
    args: ['test/e2e/silent-device.ts'],
    logFile: join('.local', 'test-rotations', 'silent-device.log'),
    env: { KEYTRAIL_SILENT_DEVICE: JSON.stringify({ user, device: 'phone', token, members, targets }) },
    readyLine: (line) => line.event === 'ready',
    readyTimeoutMs: 60_000,
  });
}

describe('a rotation that a removal made due', () => {
  test('is asked of an online device, and of the next one when that one is killed, which makes it by itself', async () => {
    const [a, b, c, d] = [someone('alice'), someone('bob'), someone('carol'), someone('dave')];
    // Nobody makes one unless asked by name: who only heard that it is due waits for an hour.
    const whenAsked = { autoRotate: { jitterMs: 3_600_000 } };
    const alice = await world.online(a, 'phone', whenAsked);
    const bob = await world.online(b, 'phone', whenAsked);
    const dave = await world.online(d, 'phone');
    await using carol = await silentDevice(c, [a, b, d]);
    const { conversationId } = (await carol.waitForLine(({ event }) => event === 'ready')) as unknown as {
      conversationId: string;
    };
    const rotated = Promise.race(
      [alice, bob].map(
        (client) =>
          new Promise<{ by: string; sessionId: string; epoch: bigint }>((resolve) => {
            client.on('rotated', (made) => resolve({ by: client.user, ...made }));
          }),
      ),
    );

    await dave.removeMembers(conversationId, [d]);
    const raw = createClient(ConversationService, world.transportsOf(a, 'phone').conversation);
    // Who made the session is asked first.
    await vi.waitFor(async () => expect((await raw.getRotation({ conversationId })).askedDevice?.userId).toBe(c), {
      timeout: 20_000,
      interval: 50,
    });
    await carol.kill('SIGKILL');

    const { by, sessionId, epoch } = await rotated;
    expect([a, b]).toContain(by);
    expect(epoch).toBe(2n);
    for (const client of [alice, bob]) await client.openSession(conversationId, sessionId, { recover: false });
    await bob.send(conversationId, 'without dave');
    expect(await alice.messages(conversationId)).toMatchObject([{ text: 'without dave' }]);
    await expect(dave.openSession(conversationId, sessionId, { recover: false })).rejects.toMatchObject({
      recovery: 'NOT_PERMITTED',
    });
  }, 120_000);
});
