import { refuse } from '@keytrail/rpc';
import { isRedisAway } from './store/redis-connection.ts';

/** Whoever calls while Redis cannot be asked is told to come again: it is no fault. */
export async function orRedisAway<T>(work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (cause) {
    if (!isRedisAway(cause)) throw cause;
    throw refuse('PEER_UNAVAILABLE', 'Redis could not be asked who is attached', {
      metadata: { peer: 'redis' },
      retryAfterMs: 1_000,
      cause,
    });
  }
}
