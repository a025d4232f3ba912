import { expect, test } from 'vitest';
import { memoryKeyStore } from '../src/index.ts';
import { OwnDevice } from '../src/own-device.ts';
import { firstDevice } from './people.ts';
import { World } from './world.ts';

test('changes of what is stored of the own device lose nothing of each other, however slow the store is', async () => {
  const keyStore = memoryKeyStore();
  await firstDevice(new World(), 'alice', 'laptop', { keyStore });
  const slow = {
    ...keyStore,
    async device() {
      const device = await keyStore.device();
      await new Promise((resolve) => setImmediate(resolve));
      return device;
    },
  };
  const own = new OwnDevice({ userId: 'alice', deviceId: 'laptop' }, slow);
  const rootKey = { publicKey: new Uint8Array(32).fill(7), privateKey: new Uint8Array(32).fill(8) };
  await Promise.all([
    own.change((device) => ({ ...device, signedPrekeyId: 70 })),
    own.change((device) => ({ ...device, rootKey })),
    own.change((device) => ({ ...device, lastResortPrekeyId: 71 })),
  ]);
  expect(await keyStore.device()).toMatchObject({ signedPrekeyId: 70, lastResortPrekeyId: 71, rootKey });
  expect((await own.registered()).rootKey).toEqual(rootKey);
});
