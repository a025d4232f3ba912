import { withRedisSpan } from '@keytrail/telemetry';
import { Redis } from 'ioredis';
import type { Charge } from '../domain/claim-bill.ts';
import { never } from '../domain/gcra.ts';
import type { LimitStore, Spent } from './limit-store.ts';

// Both scripts get all buckets as keys, item by item, and ARGV: the time in µs or '' for the server's, the number of items, and for each item
// how many buckets it has, interval, burst and cost. '%.0f' because Lua writes large numbers with 14 digits else.
const header = `
local now = tonumber(ARGV[1])
if not now then
  local time = redis.call('TIME')
  now = time[1] * 1000000 + time[2]
end
local stored = redis.call('MGET', unpack(KEYS))
local after = {}
local key = 0`;

const spendScript = `${header}
local refusedBy, wait = 0, 0
for item = 0, tonumber(ARGV[2]) - 1 do
  local at = 3 + item * 4
  local interval, burst, cost = tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
  for _ = 1, tonumber(ARGV[at]) do
    key = key + 1
    local arrival = tonumber(stored[key] or 0)
    if arrival < now then arrival = now end
    arrival = arrival + cost * interval
    local mine = arrival - now - burst * interval
    if cost > burst then mine = math.huge end
    if mine > wait then refusedBy, wait = key, mine end
    after[key] = arrival
  end
end
if refusedBy > 0 then return {refusedBy, wait == math.huge and '' or string.format('%.0f', wait)} end
for i = 1, key do
  redis.call('SET', KEYS[i], string.format('%.0f', after[i]), 'PX', string.format('%.0f', math.ceil((after[i] - now) / 1000)))
end
return {0, ''}`;

const refundScript = `${header}
for item = 0, tonumber(ARGV[2]) - 1 do
  local at = 3 + item * 4
  local interval, cost = tonumber(ARGV[at + 1]), tonumber(ARGV[at + 3])
  for _ = 1, tonumber(ARGV[at]) do
    key = key + 1
    if stored[key] then
      local before = tonumber(stored[key]) - cost * interval
      if before > now then
        redis.call('SET', KEYS[key], string.format('%.0f', before), 'PX', string.format('%.0f', math.ceil((before - now) / 1000)))
      else
        redis.call('DEL', KEYS[key])
      end
    end
  end
end
return 0`;

/** The commands that `defineCommand` adds. */
interface LimitCommands {
  spendClaims(keys: number, ...keysAndArguments: (string | number)[]): Promise<[number, string]>;
  refundClaims(keys: number, ...keysAndArguments: (string | number)[]): Promise<number>;
}

// The hash tag keeps all buckets in one slot of a cluster: a bill is paid by one script, all or nothing.
const prefix = 'keytrail:{claims}:';

export interface RedisLimitsOptions {
  readonly url: string;
  /** Longest wait for one answer. */
  readonly timeoutMs: number;
  readonly onError: (error: Error) => void;
  /** For tests: the time in whole µs, instead of the server's. */
  readonly nowUs?: () => number;
}

/** The buckets of all replicas, in Redis. Connecting is nobody's wait: without a connection every call fails at once. */
export class RedisLimits implements LimitStore {
  readonly #redis: Redis & LimitCommands;
  readonly #nowUs: (() => number) | undefined;

  constructor({ url, timeoutMs, onError, nowUs }: RedisLimitsOptions) {
    const redis = new Redis(url, {
      maxRetriesPerRequest: 0,
      enableOfflineQueue: false,
      // What one turn of the event loop asks leaves with one system call.
      enableAutoPipelining: true,
      autoResendUnfulfilledCommands: false,
      connectTimeout: 2_000,
      commandTimeout: timeoutMs,
      retryStrategy: (attempt) => Math.min(attempt * 50, 1_000),
    });
    redis.on('error', onError);
    redis.defineCommand('spendClaims', { lua: spendScript });
    redis.defineCommand('refundClaims', { lua: refundScript });
    this.#redis = redis as Redis & LimitCommands;
    this.#nowUs = nowUs;
  }

  async spend(bill: readonly Charge[]): Promise<Spent> {
    const [refusedBy, wait] = await withRedisSpan('EVALSHA spend', () =>
      this.#redis.spendClaims(...this.#argumentsOf(bill)),
    );
    if (refusedBy === 0) return { allowed: true };
    return { allowed: false, refusedBy: refusedBy - 1, retryAfterUs: wait === '' ? never : Number(wait) };
  }

  async refund(bill: readonly Charge[]): Promise<void> {
    await withRedisSpan('EVALSHA refund', () => this.#redis.refundClaims(...this.#argumentsOf(bill)));
  }

  /** Throws when Redis does not answer as it would have to for a claim. */
  async ping(): Promise<void> {
    await withRedisSpan('PING', () => this.#redis.ping());
  }

  close(): void {
    this.#redis.disconnect();
  }

  #argumentsOf(bill: readonly Charge[]): [number, ...(string | number)[]] {
    const keys = bill.flatMap(({ buckets }) => buckets.map((bucket) => prefix + bucket));
    const items = bill.flatMap(({ buckets, rate, cost }) => [buckets.length, rate.intervalUs, rate.burst, cost]);
    return [keys.length, ...keys, this.#nowUs?.() ?? '', bill.length, ...items];
  }
}
