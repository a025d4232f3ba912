import { refuse } from '@keytrail/rpc';
import { attr, type Logger, trace } from '@keytrail/telemetry';
import type { Charge } from './domain/claim-bill.ts';
import type { LimitStore, Spent } from './store/limit-store.ts';
import { createLimitsInProcess } from './store/limits-in-process.ts';

export interface ClaimLimits {
  /** Pays the bill as a whole or not at all. Throws PEER_UNAVAILABLE when Redis is away and claims are to stop then. */
  spend(bill: readonly Charge[]): Promise<Payment>;
}

export type Payment =
  | {
      readonly allowed: true;
      /** Gives back what was paid; never throws. */
      refund(): Promise<void>;
    }
  | Extract<Spent, { allowed: false }>;

export interface ClaimLimitsOptions {
  readonly redis: LimitStore;
  /** `open`: the limits of this process hold; `closed`: no claims. */
  readonly withoutRedis: 'open' | 'closed';
  readonly log: Pick<Logger, 'warn' | 'info'>;
  readonly nowMs?: () => number;
}

/** After a failure Redis is left alone for so long: a claim waits for it once, not every time. */
const pauseMs = 1_000;

/** Limits over all replicas while Redis answers, else those of this process, or none to be had. */
export function createClaimLimits(options: ClaimLimitsOptions): ClaimLimits {
  const { redis, withoutRedis, log, nowMs = () => performance.now() } = options;
  const inProcess = createLimitsInProcess();
  let away = false;
  let askAgainAt = 0;

  function failed(error: unknown): void {
    askAgainAt = nowMs() + pauseMs;
    if (!away) log.warn({ err: error, without_redis: withoutRedis }, 'Redis is away: claims are limited without it');
    away = true;
  }

  async function throughRedis(bill: readonly Charge[]): Promise<Payment | undefined> {
    if (away && nowMs() < askAgainAt) return undefined;
    // Of those that come when the pause is over, one tries.
    if (away) askAgainAt = nowMs() + pauseMs;
    try {
      const spent = await redis.spend(bill);
      if (away) log.info({}, 'Redis is back: claims are limited over all replicas again');
      away = false;
      return spent.allowed ? { allowed: true, refund: () => Promise.resolve(redis.refund(bill)).catch(failed) } : spent;
    } catch (error) {
      failed(error);
      return undefined;
    }
  }

  return {
    async spend(bill) {
      if (bill.length === 0) return { allowed: true, refund: async () => {} };
      const payment = await throughRedis(bill);
      trace.getActiveSpan()?.setAttribute(attr.limitsKeptBy, payment ? 'redis' : 'process');
      if (payment) return payment;
      if (withoutRedis === 'closed')
        throw refuse('PEER_UNAVAILABLE', 'the limits on claims cannot be looked up', {
          metadata: { peer: 'redis' },
          retryAfterMs: pauseMs,
        });
      const spent = inProcess.spend(bill) as Spent;
      return spent.allowed ? { allowed: true, refund: async () => inProcess.refund(bill) } : spent;
    },
  };
}
