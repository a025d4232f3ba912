import { type KeyStore, memoryKeyStore, type StoredPrekeyKind } from '../src/index.ts';

export const prekeyKinds: readonly StoredPrekeyKind[] = ['signed', 'kem-last-resort', 'one-time', 'kem-one-time'];

/** A copy of what a key store has now of its own device: keys, prekeys, its own pin, and counters. What comes later is not in it. */
export async function copyOf(store: KeyStore): Promise<KeyStore> {
  const copy = memoryKeyStore();
  const device = await store.device();
  if (!device) throw new Error('nothing to copy');
  await copy.saveDevice(device);
  for (const kind of prekeyKinds) await copy.savePrekeys(await store.prekeys(kind));
  const pin = await store.pin(device.userId);
  if (pin) await copy.pinFirst(device.userId, pin);
  for (const counter of ['prekey ids', 'attachments'])
    await copy.reserve(counter, Number(await store.reserve(counter, 0)));
  return copy;
}
