import type { Caller } from '@keytrail/auth';
import { LRUCache } from 'lru-cache';
import { refuse } from './refusal.ts';

export interface Bounds {
  /** 0 for no bound. */
  readonly requestsPerSecond: number;
  readonly burst: number;
  /** 0 for no bound. */
  readonly inFlight: number;
}

/** What one caller uses now. */
export interface Use {
  tokens: number;
  filledAt: number;
  inFlight: number;
}

export interface CallerLimiter {
  /** Counts a call. Throws LIMIT_EXCEEDED. What it returns is given back with `leave` when the call has been answered. */
  enter(caller: Caller): Use | undefined;
  leave(use: Use | undefined): void;
}

const callersRemembered = 10_000;
const inFlightRetryMs = 200;

/**
 * A token bucket and a count of calls in flight for each caller, in this process alone. Services are not limited: they are
 * bounded by the limits of those whom they serve. The least recent callers are forgotten, which gives them a full bucket.
 */
export function createCallerLimiter(scope: string, bounds: Bounds): CallerLimiter {
  const uses = new LRUCache<string, Use>({ max: callersRemembered });
  const { requestsPerSecond, burst, inFlight } = bounds;

  function exceeded(limit: string, retryAfterMs: number) {
    return refuse('LIMIT_EXCEEDED', `more than ${limit}`, { metadata: { limit, scope }, retryAfterMs });
  }

  return {
    enter(caller) {
      if (caller.kind === 'service') return undefined;
      const key = keyOf(caller);
      const now = performance.now();
      let use = uses.get(key);
      if (use === undefined) {
        use = { tokens: burst, filledAt: now, inFlight: 0 };
        uses.set(key, use);
      }
      if (inFlight > 0 && use.inFlight >= inFlight) throw exceeded(`${inFlight} calls in flight`, inFlightRetryMs);
      if (requestsPerSecond > 0) {
        use.tokens = Math.min(burst, use.tokens + ((now - use.filledAt) * requestsPerSecond) / 1000);
        use.filledAt = now;
        if (use.tokens < 1)
          throw exceeded(`${requestsPerSecond} requests per second`, ((1 - use.tokens) * 1000) / requestsPerSecond);
        use.tokens -= 1;
      }
      use.inFlight += 1;
      return use;
    },
    leave(use) {
      if (use !== undefined) use.inFlight -= 1;
    },
  };
}

function keyOf(caller: Exclude<Caller, { kind: 'service' }>): string {
  if (caller.kind === 'device') return `${caller.userId} ${caller.deviceId}`;
  return caller.kind === 'operator' ? caller.subject : '';
}
