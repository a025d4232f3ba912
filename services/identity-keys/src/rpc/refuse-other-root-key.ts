import { refuse } from '@keytrail/rpc';

/** Throws ROOT_KEY_MISMATCH when the key is not the one that the user has now. */
export function refuseOtherRootKey(userId: string, present: Uint8Array | undefined, rootKey: Uint8Array): void {
  if (present && Buffer.compare(present, rootKey) === 0) return;
  throw refuse('ROOT_KEY_MISMATCH', 'the user has another root key', { metadata: { user_id: userId } });
}
