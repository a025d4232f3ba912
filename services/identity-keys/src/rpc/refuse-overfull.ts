import { refuse } from '@keytrail/rpc';

export interface PoolAfterUpload {
  /** How many the pool would have after the upload. */
  readonly unclaimed: number;
  readonly added: number;
}

/** Throws PREKEY_POOL_FULL when the upload took the pool (`one_time_prekeys`, …) beyond `limit`. */
export function refuseOverfull(pool: string, { unclaimed, added }: PoolAfterUpload, limit: number): void {
  if (added === 0 || unclaimed <= limit) return;
  throw refuse('PREKEY_POOL_FULL', `${pool}: a pool holds ${limit} one-time prekeys at most`, {
    metadata: { field: pool, limit: String(limit), unclaimed: String(unclaimed - added) },
  });
}
