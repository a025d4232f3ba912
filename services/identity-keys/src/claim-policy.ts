import type { Caller } from '@keytrail/auth';
import type { Database } from '@keytrail/storage';
import type { Sharing } from './sharing.ts';
import { permittedTargets } from './store/claim-permissions.ts';

/** `any-device`: a first contact shares nothing yet. `shared-or-permitted`: it needs the application's permission. */
export type ClaimPolicyName = 'any-device' | 'shared-or-permitted';

export interface ClaimPolicy {
  readonly name: ClaimPolicyName;
  /** Of the users, those whose prekeys the caller may not claim. Throws PEER_UNAVAILABLE. */
  forbidden(caller: Caller, userIds: readonly string[]): Promise<ReadonlySet<string>>;
}

export function createClaimPolicy(parts: { name: ClaimPolicyName; db: Database; sharing: Sharing }): ClaimPolicy {
  const { name, db, sharing } = parts;
  return {
    name,
    async forbidden(caller, userIds) {
      if (name === 'any-device' || caller.kind !== 'device') return new Set();
      const known = await sharing.knownTo(caller, userIds);
      const strangers = [...new Set(userIds)].filter((userId) => !known.has(userId));
      if (strangers.length === 0) return new Set();
      const permitted = await permittedTargets(db, caller.userId, strangers);
      return new Set(strangers.filter((userId) => !permitted.has(userId)));
    },
  };
}
