import { refuse } from '@keytrail/rpc';
import type { Fate } from '../store/prekeys.ts';

/** Throws PREKEY_ID_CONFLICT when a key of an upload is one, naming the first. */
export function refuseConflict(kind: string, prekeys: readonly { keyId: number }[], fates: readonly Fate[]): void {
  const index = fates.indexOf('conflict');
  if (index >= 0) throw prekeyIdConflict(`${kind}[${index}].key_id`, prekeys[index]?.keyId);
}

export function prekeyIdConflict(field: string, keyId: number | undefined) {
  return refuse('PREKEY_ID_CONFLICT', `${field}: the id is in use, or was, with another key`, {
    metadata: { field, key_id: String(keyId) },
  });
}
