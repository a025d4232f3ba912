import type { Database } from '@keytrail/storage';
import { LRUCache } from 'lru-cache';
import { findErasureOf } from './store/erasures.ts';

export interface ErasedUsers {
  /** Whether the user is erased; known as late as `rememberedMs` after DeleteUser. */
  has(userId: string): Promise<boolean>;
}

/** Asks the database about each calling user at most once within `rememberedMs`. */
export function createErasedUsers(db: Database, { rememberedMs }: { readonly rememberedMs: number }): ErasedUsers {
  const known = new LRUCache<string, Promise<boolean>>({ max: 50_000, ttl: rememberedMs });
  return {
    async has(userId) {
      const remembered = known.get(userId);
      if (remembered) return remembered;
      const asked = findErasureOf(db, userId).then((erasure) => erasure !== undefined);
      known.set(userId, asked);
      asked.catch(() => known.delete(userId));
      return asked;
    },
  };
}
