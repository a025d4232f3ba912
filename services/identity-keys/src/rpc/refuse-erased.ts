import { refuse } from '@keytrail/rpc';

/** Throws USER_ERASED when there is a time of erasure. */
export function refuseErased(userId: string, erasedAt: Date | null): void {
  if (!erasedAt) return;
  throw refuse('USER_ERASED', 'the user has been erased', { metadata: { user_id: userId } });
}
