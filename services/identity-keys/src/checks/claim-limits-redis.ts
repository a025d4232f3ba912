import type { Outcome, Probe } from '@keytrail/diagnosis';

interface Checked {
  readonly redis: { ping(): Promise<void> };
  /** Whether any limit on claims is set. */
  readonly limited: boolean;
  readonly withoutRedis: 'open' | 'closed';
}

const hint = 'start Redis, or look at KEYTRAIL_REDIS_URL and the network';

/** Whether the Redis that keeps the limits on claims answers this process, and what it does without. */
export function probeClaimLimitsRedis({ redis, limited, withoutRedis }: Checked): Probe {
  return {
    code: 'REDIS',
    async run(): Promise<Outcome> {
      if (!limited) return { status: 'skip', summary: 'no limit on claims is set: Redis is not asked' };
      const from = performance.now();
      try {
        await redis.ping();
      } catch {
        const evidence = { withoutRedis };
        // Whatever it answers: for a claim it is away.
        return withoutRedis === 'closed'
          ? { status: 'fail', summary: 'Redis does not answer: all claims of prekeys are refused', evidence, hint }
          : {
              status: 'warn',
              summary: 'Redis does not answer: the limits on claims hold for each process alone',
              evidence,
              hint,
            };
      }
      const ms = Math.round(performance.now() - from);
      return { status: 'ok', summary: `Redis answers in ${ms} ms`, evidence: { roundTripMs: ms } };
    },
  };
}
