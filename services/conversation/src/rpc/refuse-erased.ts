import type { Queryable } from '@keytrail/storage';
import { userErased } from '../refusals.ts';
import { erasedAmong, isOfErasedUser } from '../store/erasures.ts';

/** The database decides who may not be a member; this puts it in the words of the contract. Throws USER_ERASED, or what it was given. */
export async function refuseErased(
  db: Queryable,
  members: readonly { readonly userId: string }[],
  error: unknown,
): Promise<never> {
  if (!isOfErasedUser(error)) throw error;
  const userIds = members.map(({ userId }) => userId);
  const [erased = ''] = await erasedAmong(db, userIds);
  throw userErased(erased);
}

/** Before any work is done for them. Throws USER_ERASED. */
export async function refuseErasedMembers(
  db: Queryable,
  members: readonly { readonly userId: string }[],
): Promise<void> {
  const [erased] = await erasedAmong(
    db,
    members.map(({ userId }) => userId),
  );
  if (erased !== undefined) throw userErased(erased);
}
