import { randomBytes, randomUUID } from 'node:crypto';
import { create } from '@bufbuild/protobuf';
import { Code } from '@connectrpc/connect';
import { SetRecoveryRequestSchema } from '@keytrail/contracts';
import { createRootKey } from '@keytrail/crypto';
import { nodePrimitives } from '@keytrail/crypto/node';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { TestDevice } from './device-keys.ts';
import { type IdentityKeysUnderTest, newUser, startIdentityKeys, wires } from './identity-keys-fixture.ts';
import { refusalOf } from './refusal-of.ts';
import { changeKeeping } from './root-key-changing.ts';

let service: IdentityKeysUnderTest;
beforeAll(async () => {
  service = await startIdentityKeys();
});
afterAll(() => service?.stop());

const recoveryOf = ({ rootKey }: TestDevice, sealedRootKey: Uint8Array = randomBytes(76)) =>
  create(SetRecoveryRequestSchema, { requestId: randomUUID(), rootKey: rootKey.publicKey, sealedRootKey });

describe('a recovery', () => {
  test.for(wires)('is kept as it was sealed, for any device of the user, registered or not (%s)', async (wire) => {
    const { device } = await service.register({ userId: newUser(), deviceId: 'phone' });
    const client = await service.asDevice(device, { wire });
    const request = recoveryOf(device);
    const { updatedAt } = await client.setRecovery(request);
    for (const deviceId of ['phone', 'new-phone']) {
      const asker = await service.asDevice({ userId: device.userId, deviceId }, { wire });
      const kept = await asker.getRecovery({});
      expect(kept.updatedAt).toEqual(updatedAt);
      expect(Buffer.from(kept.rootKey)).toEqual(Buffer.from(device.rootKey.publicKey));
      expect(Buffer.from(kept.sealedRootKey)).toEqual(Buffer.from(request.sealedRootKey));
    }
  });

  test('replaces the one before; a repetition of an old request does not bring that back', async () => {
    const { device } = await service.register({ userId: newUser(), deviceId: 'phone' });
    const client = await service.asDevice(device);
    const [first, second] = [recoveryOf(device), recoveryOf(device)];
    const answer = await client.setRecovery(first);
    await client.setRecovery(second);
    expect(await client.setRecovery(first)).toEqual(answer);
    expect(Buffer.from((await client.getRecovery({})).sealedRootKey)).toEqual(Buffer.from(second.sealedRootKey));
  });

  test('is of the present root key alone, and ends with it', async () => {
    const { device } = await service.register({ userId: newUser(), deviceId: 'phone' });
    const client = await service.asDevice(device);
    const other = { ...device, rootKey: createRootKey(nodePrimitives) };
    expect(await refusalOf(client.setRecovery(recoveryOf(other)))).toMatchObject({
      code: Code.FailedPrecondition,
      reason: 'ROOT_KEY_MISMATCH',
      metadata: { user_id: device.userId },
    });
    await client.setRecovery(recoveryOf(device));
    await client.changeRootKey(changeKeeping([device], { version: 1n }));
    expect(await refusalOf(client.getRecovery({}))).toMatchObject({ reason: 'NOT_FOUND_OR_NOT_PERMITTED' });
    expect(await refusalOf(client.setRecovery(recoveryOf(device)))).toMatchObject({ reason: 'ROOT_KEY_MISMATCH' });
  });

  test('of a user who kept none, or who does not exist, is not found in the same words', async () => {
    const { device } = await service.register({ userId: newUser(), deviceId: 'phone' });
    const none = await refusalOf((await service.asDevice(device)).getRecovery({}));
    const nobody = await refusalOf((await service.asDevice({ userId: newUser(), deviceId: 'phone' })).getRecovery({}));
    for (const refusal of [none, nobody])
      expect(refusal).toMatchObject({ code: Code.NotFound, reason: 'NOT_FOUND_OR_NOT_PERMITTED', metadata: {} });
    expect(none.message).toBe(nobody.message);
  });

  test('is set by registered devices alone, and a revoked one does not even get it', async () => {
    const userId = newUser();
    const { device } = await service.register({ userId, deviceId: 'phone' });
    const { device: lost } = await service.register({ userId, deviceId: 'lost', rootKey: device.rootKey });
    await (await service.asDevice(device)).setRecovery(recoveryOf(device));
    const stray = await service.asDevice({ userId, deviceId: 'stray' });
    expect(await refusalOf(stray.setRecovery(recoveryOf(device)))).toMatchObject({ reason: 'DEVICE_NOT_REGISTERED' });
    const nobody = await service.asDevice({ userId: newUser(), deviceId: 'phone' });
    expect(await refusalOf(nobody.setRecovery(recoveryOf(device)))).toMatchObject({ reason: 'DEVICE_NOT_REGISTERED' });
    await service.revoke(userId, 'lost');
    const gone = await service.asDevice(lost);
    expect(await refusalOf(gone.setRecovery(recoveryOf(device)))).toMatchObject({ reason: 'DEVICE_REVOKED' });
    expect(await refusalOf(gone.getRecovery({}))).toMatchObject({ reason: 'DEVICE_REVOKED' });
  });
});
