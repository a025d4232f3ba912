import { timestampFromDate } from '@bufbuild/protobuf/wkt';
import { MissCause } from '@keytrail/contracts';
import { deviceListChanged, publishHint } from '@keytrail/events';
import { afterAll, beforeAll, expect, it, vi } from 'vitest';
import { createPerson, makeSession, type TestDevice } from './people.ts';
import { refusalOf, startWorld, type World } from './world.ts';

let world: World;
beforeAll(async () => {
  world = await startWorld({}, { sweep: false });
}, 60_000);
afterAll(() => world?.stop());

const changedAt = new Date('2026-11-01T12:00:00.000Z');

function tellChange({ userId, deviceId }: TestDevice, revoked: boolean): Promise<void> {
  const change = { userId, deviceId, version: 2n, revoked, changedAt: timestampFromDate(changedAt) };
  return publishHint(world.bus, deviceListChanged, change);
}

async function revokedRows(userId: string) {
  const { rows } = await world.sql.query('SELECT device_id, revoked_at FROM revoked_devices WHERE user_id = $1', [
    userId,
  ]);
  return rows;
}

it("a revocation that identity-keys tells ends a device's hits, and those of no other device", async () => {
  const bob = createPerson('bob');
  const [phone, laptop] = [bob.addDevice(), bob.addDevice()];
  const made = makeSession({ initiator: laptop, covered: [laptop, phone] });
  await world.store(made);
  world.peers.commit(made, [bob]);
  const { conversationId, sessionId } = made.session;
  const read = (device: TestDevice) => world.as(device).getInitialSession({ conversationId, sessionId });
  expect((await read(phone)).sessionId).toBe(sessionId);

  await tellChange(laptop, false);
  await tellChange(phone, true);
  // Told twice, noted once.
  await tellChange(phone, true);
  await vi.waitFor(
    async () => expect(await revokedRows(bob.userId)).toEqual([{ device_id: phone.deviceId, revoked_at: changedAt }]),
    10_000,
  );

  // The device lists of the stand-in know of no revocation: the hit statement alone turns this read into a miss.
  const { miss } = await refusalOf(read(phone));
  expect(miss).toMatchObject({
    cause: MissCause.DEVICE_REVOKED,
    evidence: { device_id: phone.deviceId, revoked_at: changedAt.toISOString() },
  });
  expect((await read(laptop)).sessionId).toBe(sessionId);
});
