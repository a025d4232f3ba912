import { toBinary } from '@bufbuild/protobuf';
import { Code } from '@connectrpc/connect';
import { createServiceIdentity } from '@keytrail/auth';
import { ConversationService, GetDevicesResponseSchema } from '@keytrail/contracts';
import { connectPeer } from '@keytrail/rpc';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { createSharing } from '../src/sharing.ts';
import type { TestDevice } from './device-keys.ts';
import {
  type IdentityKeysUnderTest,
  newUser,
  serviceCredential,
  startIdentityKeys,
  wires,
} from './identity-keys-fixture.ts';
import { refusalOf } from './refusal-of.ts';

const rememberedMs = 60_000;
let service: IdentityKeysUnderTest;
beforeAll(async () => {
  service = await startIdentityKeys({ settings: { KEYTRAIL_SHARED_USERS_REMEMBERED_MS: String(rememberedMs) } });
});
afterAll(() => service?.stop());

async function newDevice(): Promise<TestDevice> {
  return (await service.register({ userId: newUser(), deviceId: 'phone' })).device;
}

function asStranger(wire: 'grpc' | 'web' = 'grpc') {
  return service.asRegistered({ userId: newUser(), deviceId: 'asking' }, { wire });
}

/** A user id as long as the other, so that answers about both have the same length. */
function nobodyLike(userId: string): string {
  return `x${userId.slice(1)}`;
}

test.for(wires)(
  'a stranger gets the same bytes for a user with devices as for one that does not exist (%s)',
  async (wire) => {
    const { userId } = await newDevice();
    const client = await asStranger(wire);
    const bytesOf = async (asked: string, includeRevoked: boolean) => {
      const answer = await client.getDevices({ userIds: [asked], includeRevoked });
      expect(answer.deviceLists[0]?.userId).toBe(asked);
      for (const list of answer.deviceLists) list.userId = '';
      return toBinary(GetDevicesResponseSchema, answer);
    };
    for (const includeRevoked of [false, true])
      expect(await bytesOf(userId, includeRevoked)).toEqual(await bytesOf(nobodyLike(userId), includeRevoked));
  },
);

test('a user knows its own devices without anybody being asked', async () => {
  const { userId } = await newDevice();
  const client = await service.asDevice({ userId, deviceId: 'not-registered' });
  service.peers.asked.length = 0;
  const { deviceLists } = await client.getDevices({ userIds: [userId] });
  expect(deviceLists[0]?.devices).toHaveLength(1);
  expect(service.peers.asked).toEqual([]);
});

test('services know everybody without anybody being asked', async () => {
  const { userId } = await newDevice();
  service.peers.asked.length = 0;
  const { deviceLists } = await service.asService('conversation').getDevices({ userIds: [userId] });
  expect(deviceLists[0]?.devices).toHaveLength(1);
  expect(service.peers.asked).toEqual([]);
});

test('conversation is asked once for all users that are not remembered; a conversation that begins counts at once', async () => {
  const [a, b] = [await newDevice(), await newDevice()];
  const caller = newUser();
  const client = await service.asRegistered({ userId: caller, deviceId: 'phone' });
  const known = async (...userIds: string[]) => {
    service.peers.asked.length = 0;
    const { deviceLists } = await client.getDevices({ userIds });
    return deviceLists.map(({ devices }) => devices.length);
  };
  const nobody = newUser();
  expect(await known(a.userId, b.userId, nobody)).toEqual([0, 0, 0]);
  expect(service.peers.asked).toEqual([{ userId: caller, otherUserIds: [a.userId, b.userId, nobody] }]);
  service.peers.share(caller, a.userId);
  expect(await known(a.userId, b.userId)).toEqual([1, 0]);
  expect(service.peers.asked).toEqual([{ userId: caller, otherUserIds: [a.userId, b.userId] }]);
  service.peers.part(a.userId);
  expect(await known(b.userId, a.userId)).toEqual([0, 1]);
  expect(service.peers.asked).toEqual([{ userId: caller, otherUserIds: [b.userId] }]);
});

describe('who asks while another call asks the same', () => {
  /** Begins one question, and once conversation has looked, others; `meanwhile` happens in between. */
  async function askAtOnce(callerId: string, userId: string, meanwhile: () => void) {
    const conversation = connectPeer(ConversationService, {
      target: service.peers.targets.KEYTRAIL_PEER_CONVERSATION ?? '',
      identity: createServiceIdentity({ serviceCredential }, 'identity-keys'),
      peer: 'conversation',
      timeoutMs: 10_000,
    });
    const sharing = createSharing(conversation, { rememberMs: rememberedMs, formerMembers: false });
    const caller = {
      kind: 'device',
      userId: callerId,
      deviceId: 'phone',
      expiresAtMs: Number.POSITIVE_INFINITY,
      scopes: new Set<string>(),
    } as const;
    const looked = Promise.withResolvers<void>();
    const mayAnswer = Promise.withResolvers<void>();
    service.peers.beforeAnswering = () => {
      looked.resolve();
      return mayAnswer.promise;
    };
    service.peers.asked.length = 0;
    try {
      const early = sharing.knownTo(caller, [userId]);
      await looked.promise;
      meanwhile();
      const late = [sharing.knownTo(caller, [userId]), sharing.knownTo(caller, [userId])];
      service.peers.beforeAnswering = () => {};
      mayAnswer.resolve();
      const [first, ...others] = await Promise.all([early, ...late]);
      return { early: first?.has(userId), late: others.map((known) => known.has(userId)) };
    } finally {
      conversation.close();
    }
  }

  test('takes its yes', async () => {
    const [caller, userId] = [newUser(), newUser()];
    service.peers.share(caller, userId);
    expect(await askAtOnce(caller, userId, () => {})).toEqual({ early: true, late: [true, true] });
    expect(service.peers.asked).toHaveLength(1);
  });

  test('does not take its no: it may have looked before the conversation began', async () => {
    const [caller, userId] = [newUser(), newUser()];
    const known = await askAtOnce(caller, userId, () => service.peers.share(caller, userId));
    expect(known).toEqual({ early: false, late: [true, true] });
  });
});

test('nobody is guessed about: without conversation the call is refused, what is remembered still counts', async () => {
  const [a, b] = [await newDevice(), await newDevice()];
  const caller = newUser();
  service.peers.share(caller, a.userId);
  const client = await service.asRegistered({ userId: caller, deviceId: 'phone' });
  await client.getDevices({ userIds: [a.userId] });
  service.peers.conversationAway = true;
  try {
    expect(await refusalOf(client.getDevices({ userIds: [a.userId, b.userId] }))).toMatchObject({
      code: Code.Unavailable,
      reason: 'PEER_UNAVAILABLE',
      metadata: { peer: 'conversation' },
      retryAfterMs: 500,
    });
    const { deviceLists } = await client.getDevices({ userIds: [a.userId, caller] });
    expect(deviceLists[0]?.devices).toHaveLength(1);
  } finally {
    service.peers.conversationAway = false;
  }
});

test('with nothing remembered, a conversation that was left counts no more', async () => {
  const forgetful = await startIdentityKeys({ settings: { KEYTRAIL_SHARED_USERS_REMEMBERED_MS: '0' } });
  try {
    const { device } = await forgetful.register({ userId: newUser(), deviceId: 'phone' });
    const caller = newUser();
    const client = await forgetful.asRegistered({ userId: caller, deviceId: 'phone' });
    const devicesSeen = async () =>
      (await client.getDevices({ userIds: [device.userId] })).deviceLists[0]?.devices.length;
    forgetful.peers.share(caller, device.userId);
    expect(await devicesSeen()).toBe(1);
    // Who stays still verifies what the one who left wrote; who left is told nothing more.
    const stayed = newUser();
    const staying = await forgetful.asRegistered({ userId: stayed, deviceId: 'phone' });
    forgetful.peers.share(caller, device.userId, stayed);
    forgetful.peers.part(caller);
    expect(await devicesSeen()).toBe(0);
    const { deviceLists } = await staying.getDevices({ userIds: [caller] });
    expect(deviceLists[0]?.devices.map(({ deviceId }) => deviceId)).toEqual(['phone']);
    const { deviceLogs } = await staying.listDeviceLog({ users: [{ userId: caller }] });
    expect(deviceLogs[0]?.entries).toHaveLength(1);
  } finally {
    await forgetful.stop();
  }
});
