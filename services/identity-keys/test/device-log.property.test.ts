import { createRootKey, type KeyPair, loggedRootKey } from '@keytrail/crypto';
import { nodePrimitives } from '@keytrail/crypto/node';
import fc from 'fast-check';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { makeDevice, type TestDevice } from './device-keys.ts';
import { type IdentityKeysUnderTest, newUser, startIdentityKeys } from './identity-keys-fixture.ts';
import { revocationOf } from './revoking.ts';
import { changeKeeping, rootKeyChangeOf } from './root-key-changing.ts';
import { verifiedLog } from './verified-log.ts';

let service: IdentityKeysUnderTest;
beforeAll(async () => {
  service = await startIdentityKeys({ settings: { KEYTRAIL_MAX_LOG_ENTRIES_PER_ANSWER: '3' } });
});
afterAll(() => service?.stop());

/** What a user may do; the numbers choose among the devices that are there. */
const step = fc.oneof(
  { weight: 4, arbitrary: fc.record({ act: fc.constant('register' as const) }) },
  { weight: 3, arbitrary: fc.record({ act: fc.constant('revoke' as const), by: fc.nat(), which: fc.nat() }) },
  { weight: 1, arbitrary: fc.record({ act: fc.constant('operator' as const), which: fc.nat() }) },
  {
    weight: 2,
    arbitrary: fc.record({ act: fc.constant('change' as const), by: fc.nat(), keep: fc.nat(), signed: fc.boolean() }),
  },
  { weight: 1, arbitrary: fc.record({ act: fc.constant('anew' as const), signed: fc.boolean() }) },
);
type Step = typeof step extends fc.Arbitrary<infer S> ? S : never;

/** What the user should have: kept beside the service, by the rules of the contract alone. */
interface Model {
  readonly userId: string;
  rootKey: KeyPair;
  version: bigint;
  made: number;
  readonly good: Map<string, TestDevice>;
  readonly revoked: Set<string>;
}

async function register(model: Model, { anew }: { anew?: { signed: boolean } } = {}) {
  const rootKey = anew ? createRootKey(nodePrimitives) : model.rootKey;
  const deviceId = `device-${model.made++}`;
  const { device, registration } = makeDevice({ userId: model.userId, deviceId, rootKey, oneTime: 0, kem: 0 });
  if (anew) {
    const { version, rootKey: from } = model;
    registration.rootKeyChange = rootKeyChangeOf(model.userId, { from, to: rootKey, version, signed: anew.signed });
    model.version += 1n;
    for (const left of model.good.keys()) revokeIn(model, left);
    model.rootKey = rootKey;
  }
  const response = await (await service.asDevice(device)).registerDevice(registration);
  model.version += 1n;
  model.good.set(deviceId, device);
  expect(response.deviceListVersion).toBe(model.version);
}

function revokeIn(model: Model, deviceId: string) {
  model.good.delete(deviceId);
  model.revoked.add(deviceId);
  model.version += 1n;
}

async function take(model: Model, chosen: Step) {
  const devices = [...model.good.values()];
  const pick = (n: number) => devices[n % devices.length] as TestDevice;
  if (chosen.act === 'anew' && model.version > 0n) return register(model, { anew: chosen });
  if (chosen.act === 'register' || devices.length === 0) return register(model);
  if (chosen.act === 'operator') {
    const { deviceId } = pick(chosen.which);
    await service.revoke(model.userId, deviceId);
    return revokeIn(model, deviceId);
  }
  if (chosen.act === 'revoke') {
    const device = pick(chosen.which);
    await (await service.asDevice(pick(chosen.by))).revokeDevice(revocationOf(device, { rootKey: model.rootKey }));
    return revokeIn(model, device.deviceId);
  }
  if (chosen.act === 'change') {
    const caller = pick(chosen.by);
    // The bits of a number say who stays, beside the caller.
    const staying = devices.filter((device, i) => device === caller || (chosen.keep >> i) & 1);
    const to = createRootKey(nodePrimitives);
    const { rootKey: from, version } = model;
    const request = changeKeeping(staying, { from, to, version, signed: chosen.signed });
    const response = await (await service.asDevice(caller)).changeRootKey(request);
    model.rootKey = to;
    model.version += 1n + BigInt(staying.length);
    for (const device of devices) if (!staying.includes(device)) revokeIn(model, device.deviceId);
    expect(response.deviceListVersion).toBe(model.version);
  }
}

test('whatever is done to a device list, its log verifies to the list that GetDevices answers', async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(step, { minLength: 1, maxLength: 12 }), async (steps) => {
      const model: Model = {
        userId: newUser(),
        rootKey: createRootKey(nodePrimitives),
        version: 0n,
        made: 0,
        good: new Map(),
        revoked: new Set(),
      };
      for (const chosen of steps) await take(model, chosen);
      const { entries, state } = await verifiedLog(service, model.userId);
      expect(entries.map(({ version }) => version)).toEqual(entries.map((_, i) => BigInt(i + 1)));
      expect(state.version).toBe(model.version);
      expect(Buffer.from(loggedRootKey(state) ?? [])).toEqual(Buffer.from(model.rootKey.publicKey));
      const good = state.devices.filter(({ revokedInVersion }) => revokedInVersion === undefined);
      expect(good.map(({ deviceId }) => deviceId).toSorted()).toEqual([...model.good.keys()].toSorted());
      expect(state.devices).toHaveLength(model.good.size + model.revoked.size);
    }),
    { numRuns: 25 },
  );
});
