import { randomUUID } from 'node:crypto';
import { KeyRequestKind, KeyRequestState, NotificationKind } from '@keytrail/contracts';
import { keyRequestEnded, notificationRequested } from '@keytrail/events';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { createPerson, makeSession } from './people.ts';
import { startWorld, type World } from './world.ts';

let world: World;
beforeAll(async () => {
  world = await startWorld({ waitMs: 50, sweepMs: 20, expiryMs: 300 }, { consumers: false });
}, 120_000);
afterAll(() => world?.stop());

it('with every event lost, a request still comes to its end', async () => {
  const alice = createPerson('alice');
  const initiator = alice.addDevice();
  const made = makeSession({ initiator, covered: [initiator] });
  await world.store(made);
  world.peers.commit(made, [alice]);
  const late = alice.addDevice();
  const { conversationId, sessionId } = made.session;
  const { keyRequest } = await world
    .as(late)
    .requestKey({ requestId: randomUUID(), conversationId, sessionId, kind: KeyRequestKind.MISSING });
  expect(keyRequest?.state).toBe(KeyRequestState.WAITING_FOR_HOLDER);
  const ended = await world.event(keyRequestEnded, ({ keyRequestId }) => keyRequestId === keyRequest?.keyRequestId);
  expect(ended).toMatchObject({ state: 'EXPIRED', because: 'expired' });
  const told = await world.event(
    notificationRequested.session,
    ({ notification }) => notification?.keyRequestId === keyRequest?.keyRequestId,
  );
  expect(told.notification?.kind).toBe(NotificationKind.KEY_REQUEST_ENDED);
  expect(told.devices).toMatchObject([{ userId: late.userId, deviceId: late.deviceId }]);
});
