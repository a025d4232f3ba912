import { randomUUID } from 'node:crypto';
import { createServiceIdentity } from '@keytrail/auth';
import { KeyRequestKind, KeyRequestState } from '@keytrail/contracts';
import { startTelemetry } from '@keytrail/telemetry';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { resumeRequests } from '../src/consumers/resume-for-holder.ts';
import { connectPeers } from '../src/peers.ts';
import { createPerson, makeSession } from './people.ts';
import { startWorld, type World } from './world.ts';

let world: World;
beforeAll(async () => {
  world = await startWorld({ waitMs: 60_000 }, { consumers: false, sweep: false });
}, 120_000);
afterAll(() => world?.stop());

it('a device that attaches and may not help with what waits has each request looked at once', async () => {
  const [alice, bob] = [createPerson('alice'), createPerson('bob')];
  const initiator = alice.addDevice();
  const made = makeSession({ initiator, covered: [initiator, bob.addDevice()] });
  await world.store(made);
  const { members } = world.peers.commit(made, [alice, bob]);
  const { conversationId, sessionId } = made.session;
  for (let waiting = 0; waiting < 5; waiting++) {
    const asked = { requestId: randomUUID(), conversationId, sessionId, kind: KeyRequestKind.MISSING };
    const { keyRequest } = await world.as(bob.addDevice()).requestKey(asked);
    expect(keyRequest?.state).toBe(KeyRequestState.WAITING_FOR_HOLDER);
  }
  members.set(alice.userId, []);
  world.peers.attach(initiator);

  const { db } = world.service;
  const telemetry = startTelemetry({ service: 'session', config: world.config });
  const peers = connectPeers(world.config, createServiceIdentity(world.config, 'session'));
  const looksBefore = world.peers.asked.presence;
  try {
    await resumeRequests({ db, peers, policy: world.config, log: telemetry.log, isHeard: () => true }, initiator, 2);
  } finally {
    peers.close();
    await telemetry.shutdown();
  }
  expect(world.peers.asked.presence - looksBefore).toBe(5);
  const { rows } = await world.sql.query('SELECT state, attempt FROM key_requests');
  expect(rows).toEqual(Array(5).fill({ state: 'WAITING_FOR_HOLDER', attempt: 0 }));
});
