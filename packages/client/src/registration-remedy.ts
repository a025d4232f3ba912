import { equalBytes } from './bytes.ts';
import type { Directory } from './directory.ts';
import type { RegistrationRemedy } from './errors.ts';
import type { KeyStore } from './key-store.ts';
import type { RegisteredDevice } from './own-device.ts';
import { pendingRootKey } from './root-key-change.ts';
import type { Operation } from './tracing.ts';

/**
 * What to do when identity keys or certificate are other ones at the service, by what the user's verified list says of this device.
 *
 * @throws DeviceListRefusedError, RefusalError.
 */
export async function registrationRemedy(
  { directory, store }: { readonly directory: Directory; readonly store: KeyStore },
  operation: Operation,
  own: RegisteredDevice,
): Promise<RegistrationRemedy> {
  const [list] = await directory.current(operation, [own.userId]);
  if (list === undefined || list.version === 0n || equalBytes(list.rootKey, own.rootKey.publicKey)) {
    return 'register-anew';
  }
  const listed = list.devices.find(({ deviceId }) => deviceId === own.deviceId);
  const sameKeys =
    listed !== undefined &&
    equalBytes(listed.identityKey, own.identityKey.publicKey) &&
    equalBytes(listed.signingKey, own.signingKey.publicKey);
  if (!sameKeys) return 'register-anew';
  const pending = await pendingRootKey(store);
  return pending && equalBytes(pending, list.rootKey) ? 'change-root-key-again' : 'link-again';
}
