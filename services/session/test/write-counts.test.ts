import { randomUUID } from 'node:crypto';
import { KeyRequestKind } from '@keytrail/contracts';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { createPerson, makeSession, reseal } from './people.ts';
import { startWorld, type World } from './world.ts';

let world: World;
beforeAll(async () => {
  world = await startWorld({ logLevel: 'info' }, { consumers: false, sweep: false });
}, 120_000);
afterAll(() => world?.stop());

/** What was logged of writes of envelopes in a session. */
function writesOf(sessionId: string) {
  return world.logged
    .filter((line) => line.sessionId === sessionId && 'envelopesWritten' in line)
    .map(({ message, envelopesWritten, envelopesExpected }) => ({ message, envelopesWritten, envelopesExpected }));
}

it('a session that is stored, and one that comes again, log one line each: envelopes written, and expected', async () => {
  const [alice, bob] = [createPerson('alice'), createPerson('bob')];
  const initiator = alice.addDevice();
  const covered = [initiator, bob.addDevice(), bob.addDevice()];
  const made = makeSession({ initiator, covered, withheld: [bob.addDevice()] });
  const { sessionId } = made.session;
  const counts = { envelopesWritten: 3, envelopesExpected: 3 };
  await world.store(made);
  expect(writesOf(sessionId)).toEqual([{ message: 'session stored', ...counts }]);
  await world.store(made);
  expect(writesOf(sessionId).slice(1)).toEqual([{ message: 'session stored before', ...counts }]);
  expect(world.logged.filter((line) => line.withholdingsWritten === 1)).toHaveLength(2);
});

it('a key request that is fulfilled logs one line: one envelope written, of one', async () => {
  const [alice, bob] = [createPerson('alice'), createPerson('bob')];
  const initiator = alice.addDevice();
  const made = makeSession({ initiator, covered: [initiator, bob.addDevice()] });
  await world.store(made);
  world.peers.commit(made, [alice, bob]);
  world.peers.attach(initiator);
  const { conversationId, sessionId } = made.session;
  const late = alice.addDevice();
  const asked = { requestId: randomUUID(), conversationId, sessionId, kind: KeyRequestKind.MISSING };
  const { keyRequest } = await world.as(late).requestKey(asked);
  const before = writesOf(sessionId).length;
  const fulfilment = {
    requestId: randomUUID(),
    keyRequestId: keyRequest?.keyRequestId ?? '',
    attempt: 1,
    envelope: reseal(made, initiator, late, 1),
  };
  await world.as(initiator).fulfillKeyRequest(fulfilment);
  // The first answer, again: nothing was written for it.
  await world.as(initiator).fulfillKeyRequest(fulfilment);
  expect(writesOf(sessionId).slice(before)).toEqual([
    { message: 'key request fulfilled', envelopesWritten: 1, envelopesExpected: 1 },
  ]);
});
