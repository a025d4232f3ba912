import { Code, ConnectError } from '@connectrpc/connect';
import { readRefusal } from '@keytrail/rpc';
import { afterAll, afterEach, beforeAll, expect, test } from 'vitest';
import { type Fixture, startFixture } from './fixture.ts';

let fixture: Fixture;
beforeAll(async () => {
  fixture = await startFixture();
});
afterEach(() => fixture.endTest());
afterAll(() => fixture?.[Symbol.asyncDispose]());

async function refusalOf(call: Promise<unknown>) {
  const error = await call.then(
    () => undefined,
    (thrown: unknown) => thrown,
  );
  const { reason, metadata, retryAfterMs } = readRefusal(error);
  return { code: ConnectError.from(error).code, reason, peer: metadata.peer, retry: (retryAfterMs ?? 0) > 0 };
}

test('while Redis is away whoever attaches or asks who is online is told to come again, and it is no fault', async () => {
  const presence = await fixture.gateway();
  const [phone, laptop] = [
    await fixture.device(presence, 'alice', 'phone'),
    await fixture.device(presence, 'alice', 'laptop'),
  ];
  const attached = await phone.attach(1n);
  await fixture.redis.halt?.();
  try {
    const told = { code: Code.Unavailable, reason: 'PEER_UNAVAILABLE', peer: 'redis', retry: true };
    expect(await refusalOf(laptop.attach(1n))).toEqual(told);
    expect(await refusalOf(phone.presence.listOnline({ userIds: ['alice'] }))).toEqual(told);
    await phone.presence.heartbeat({ connectionId: attached.connectionId });
  } finally {
    await fixture.redis.restart?.();
  }
  await laptop.attach(2n);
  await fixture.untilOnline(phone, ['alice'], ['alice/laptop', 'alice/phone']);
}, 60_000);
