import { randomUUID } from 'node:crypto';
import { DeclineReason, KeyRequestKind, KeyRequestState, MissCause } from '@keytrail/contracts';
import { deviceListChanged, publishHint } from '@keytrail/events';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { createPerson, makeSession, type Person, type TestDevice } from './people.ts';
import { keyOf } from './stand-ins.ts';
import { offersTo, refusalOf, startWorld, type World } from './world.ts';

/** Until it holds; a busy machine may take its time. */
function eventually<T>(holds: () => T | Promise<T>): Promise<T> {
  return vi.waitFor(holds, { timeout: 15_000 });
}

let world: World;
beforeAll(async () => {
  world = await startWorld({ revocationsPullMs: 3_600_000, waitMs: 60_000, offerMs: 60_000, offersAtOnce: 1 });
}, 60_000);
afterAll(() => world?.stop());

/** identity-keys has it in its list, and no event tells. */
function revokeUntold(...devices: TestDevice[]): void {
  const { numbered } = world.peers.revocations;
  for (const { userId, deviceId } of devices)
    numbered.push({ number: BigInt(numbered.length + 1), device: { userId, deviceId }, revokedAt: new Date() });
}

function tellRevoked({ userId, deviceId }: TestDevice): Promise<void> {
  return publishHint(world.bus, deviceListChanged, { userId, deviceId, version: 2n, revoked: true });
}

async function sharedSession(initiator: TestDevice, covered: TestDevice[], people: Person[]) {
  const made = makeSession({ initiator, covered });
  await world.store(made);
  world.peers.commit(made, people);
  const { conversationId, sessionId } = made.session;
  return { conversationId, sessionId };
}

async function revokedRows(userId: string): Promise<string[]> {
  const { rows } = await world.sql.query(
    'SELECT device_id FROM revoked_devices WHERE user_id = $1 ORDER BY device_id',
    [userId],
  );
  return rows.map(({ device_id }) => device_id);
}

describe('the list of revoked devices', () => {
  it('is completed by the pull when no event told: reads of the device are refused from then on', async () => {
    const bob = createPerson('bob');
    const [phone, laptop] = [bob.addDevice(), bob.addDevice()];
    const named = await sharedSession(laptop, [laptop, phone], [bob]);
    await world.as(phone).getInitialSession(named);
    revokeUntold(phone);
    const pulling = await world.another({ revocationsPullMs: 20 }, { consumers: false, sweep: false });
    try {
      await eventually(async () => {
        const { miss } = await refusalOf(world.as(phone).getInitialSession(named));
        expect(miss?.cause).toBe(MissCause.DEVICE_REVOKED);
      });
      await world.as(laptop).getInitialSession(named);
      // Told while it runs, and pulled in a later round.
      revokeUntold(laptop);
      await eventually(async () => expect(await revokedRows(bob.userId)).toEqual(['device-1', 'device-2']));
    } finally {
      await pulling.stop();
    }
  });

  it('is read page by page in one round, from where the last one ended, and in the database once', async () => {
    const carol = createPerson('carol');
    revokeUntold(...Array.from({ length: 7 }, () => carol.addDevice()));
    const all = carol.devices.map(({ deviceId }) => deviceId).sort();
    const differing = { revocationsPullMs: 3_600_000 };
    const replicas = await Promise.all([
      world.another(differing, { consumers: false, sweep: false }),
      world.another(differing, { consumers: false, sweep: false }),
    ]);
    try {
      await eventually(async () => expect(await revokedRows(carol.userId)).toEqual(all));
      await eventually(async () => {
        const { rows } = await world.sql.query('SELECT complete_to::int FROM revocation_pull');
        expect(rows).toEqual([{ complete_to: world.peers.revocations.numbered.length }]);
      });
    } finally {
      await Promise.all(replicas.map((replica) => replica.stop()));
    }
  });

  it('does not keep session from serving while identity-keys cannot be asked, and goes on afterwards', async () => {
    const dave = createPerson('dave');
    const [phone, laptop] = [dave.addDevice(), dave.addDevice()];
    const named = await sharedSession(laptop, [laptop, phone], [dave]);
    world.peers.revocations.away = true;
    revokeUntold(phone);
    const pulling = await world.another({ revocationsPullMs: 10 }, { consumers: false, sweep: false });
    try {
      expect((await pulling.as(phone).getInitialSession(named)).sessionId).toBe(named.sessionId);
      world.peers.revocations.away = false;
      await eventually(async () => expect(await revokedRows(dave.userId)).toEqual([phone.deviceId]));
    } finally {
      world.peers.revocations.away = false;
      await pulling.stop();
    }
  });

  it('never becomes less complete, and a revocation in it stands: the database refuses both', async () => {
    const erin = createPerson('erin').addDevice();
    await world.sql.query('INSERT INTO revoked_devices VALUES ($1, $2, now())', [erin.userId, erin.deviceId]);
    await expect(
      world.sql.query("UPDATE revoked_devices SET revoked_at = now() + interval '1 day' WHERE user_id = $1", [
        erin.userId,
      ]),
    ).rejects.toMatchObject({ constraint: 'revoked_devices_never_change' });
    await world.sql.query('UPDATE revocation_pull SET complete_to = complete_to + 1');
    await expect(world.sql.query('UPDATE revocation_pull SET complete_to = complete_to - 1')).rejects.toMatchObject({
      constraint: 'revocation_pull_moves_forward',
    });
  });
});

describe('with a revocation', () => {
  it("the device's open key requests end, although its peers have not heard of it", async () => {
    const [alice, bob] = [createPerson('alice'), createPerson('bob')];
    const initiator = alice.addDevice();
    const [phone, tablet] = [bob.addDevice(), bob.addDevice()];
    const named = await sharedSession(initiator, [initiator], [alice, bob]);
    const request = (device: TestDevice) =>
      world.as(device).requestKey({ ...named, requestId: randomUUID(), kind: KeyRequestKind.MISSING });
    const [{ keyRequest: ofPhone }, { keyRequest: ofTablet }] = [await request(phone), await request(tablet)];
    expect(ofPhone?.state).toBe(KeyRequestState.WAITING_FOR_HOLDER);
    await tellRevoked(phone);
    const stateOf = async (id: string | undefined) => {
      const { rows } = await world.sql.query(
        'SELECT state, ended_because FROM key_requests WHERE key_request_id = $1',
        [id],
      );
      return rows[0];
    };
    await eventually(async () =>
      expect(await stateOf(ofPhone?.keyRequestId)).toEqual({
        state: 'UNFULFILLABLE',
        ended_because: 'requester_revoked',
      }),
    );
    expect(await stateOf(ofTablet?.keyRequestId)).toEqual({ state: 'WAITING_FOR_HOLDER', ended_because: null });
  });

  it('what was offered to the device is void, and offered to the next holder at once', async () => {
    const [alice, bob] = [createPerson('alice'), createPerson('bob')];
    const [first, second] = [alice.addDevice(), alice.addDevice()];
    const named = await sharedSession(first, [first, second], [alice, bob]);
    const requester = bob.addDevice();
    world.peers.attach(first, second);
    const { keyRequest } = await world
      .as(requester)
      .requestKey({ ...named, requestId: randomUUID(), kind: KeyRequestKind.MISSING });
    expect(keyRequest?.state).toBe(KeyRequestState.OFFERED);
    const offered = (await offersTo(world.as(first))).length === 1 ? first : second;
    const other = offered === first ? second : first;
    expect(await offersTo(world.as(other))).toEqual([]);
    // identity-keys knows at once; the event comes after.
    world.peers.revoked.set(keyOf(offered), new Date());
    await tellRevoked(offered);
    await eventually(async () => expect(await offersTo(world.as(other))).toHaveLength(1));
    expect(await offersTo(world.as(offered))).toEqual([]);
  });
});

describe('CheckOffer', () => {
  async function offeredRequest() {
    const [alice, bob] = [createPerson('alice'), createPerson('bob')];
    const [holder, bystander, requester] = [alice.addDevice(), alice.addDevice(), bob.addDevice()];
    const named = await sharedSession(holder, [holder], [alice, bob]);
    world.peers.attach(holder);
    const { keyRequest } = await world
      .as(requester)
      .requestKey({ ...named, requestId: randomUUID(), kind: KeyRequestKind.MISSING });
    if (!keyRequest) throw new Error('no key request');
    return { holder, bystander, requester, keyRequest };
  }
  const ref = ({ userId, deviceId }: TestDevice) => ({ userId, deviceId });

  it('tells identity-keys whom an open request was offered to, and for which device', async () => {
    const { holder, bystander, requester, keyRequest } = await offeredRequest();
    const { keyRequestId } = keyRequest;
    const offered = await world.asIdentityKeys.checkOffer({ keyRequestId, holder: ref(holder) });
    expect(offered).toMatchObject({ offered: true, requester: ref(requester) });
    for (const asked of [
      { keyRequestId, holder: ref(bystander) },
      { keyRequestId, holder: ref(requester) },
      { keyRequestId: randomUUID(), holder: ref(holder) },
    ]) {
      const answer = await world.asIdentityKeys.checkOffer(asked);
      expect(answer).toMatchObject({ offered: false });
      expect(answer.requester).toBeUndefined();
    }
  });

  it('says no once the holder declined, the holder was revoked, or the request ended', async () => {
    const [declined, revoked, ended] = [await offeredRequest(), await offeredRequest(), await offeredRequest()];
    await world.as(declined.holder).declineOffer({
      keyRequestId: declined.keyRequest.keyRequestId,
      attempt: declined.keyRequest.attempt,
      reason: DeclineReason.KEY_NOT_HELD,
    });
    await world.sql.query('INSERT INTO revoked_devices VALUES ($1, $2, now())', [
      revoked.holder.userId,
      revoked.holder.deviceId,
    ]);
    await world.as(ended.requester).cancelKeyRequest({ keyRequestId: ended.keyRequest.keyRequestId });
    for (const { keyRequest, holder } of [declined, revoked, ended])
      expect(
        await world.asIdentityKeys.checkOffer({ keyRequestId: keyRequest.keyRequestId, holder: ref(holder) }),
      ).toMatchObject({ offered: false });
  });

  it('is for identity-keys alone', async () => {
    const { holder, keyRequest } = await offeredRequest();
    const asked = { keyRequestId: keyRequest.keyRequestId, holder: ref(holder) };
    expect(await refusalOf(world.as(holder).checkOffer(asked))).toMatchObject({ reason: 'CALLER_NOT_ALLOWED' });
    expect(await refusalOf(world.asConversation.checkOffer(asked))).toMatchObject({ reason: 'CALLER_NOT_ALLOWED' });
  });
});
