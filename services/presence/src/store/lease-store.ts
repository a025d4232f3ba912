import { randomUUID } from 'node:crypto';
import { withRedisSpan } from '@keytrail/telemetry';
import { Cluster } from 'ioredis';
import { type DeviceEntry, formatDeviceEntry, parseDeviceEntry } from '../domain/device-entry.ts';
import { keyInEachRange } from '../domain/slot-ranges.ts';
import {
  askTogether,
  connectRedis,
  type Question,
  type RedisAddress,
  type RedisConnection,
} from './redis-connection.ts';

/** A device with its entry. */
export interface FoundDevice {
  readonly userId: string;
  readonly deviceId: string;
  readonly entry: DeviceEntry;
}

/** `held` when the entry stands now; else the live attachment that is newer. `replaced` is the entry that stood before, if any. */
export type AttachOutcome =
  | { readonly outcome: 'held'; readonly replaced: DeviceEntry | undefined }
  | { readonly outcome: 'newer-attached'; readonly by: DeviceEntry };

/** What Redis has of what it should have. */
export interface Standing {
  /** By range of slots; another one than before, when the range has lost its data in between. */
  readonly canaries: readonly string[];
  /** For each of the entries that were asked for, whether it is there. */
  readonly entriesThere: readonly boolean[];
}

// Counters have up to 20 digits, more than a Lua number holds: compared by length, then as text.
const attachScript = `
local current = redis.call('HGET', KEYS[1], ARGV[1])
if current and current ~= ARGV[4] then
  local counter = string.match(current, '^(%d+)|') or '0'
  local mine = ARGV[2]
  if #counter > #mine or (#counter == #mine and counter >= mine) then
    if current ~= ARGV[3] then return {0, current} end
  end
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[5])
return {1, current or ''}`;

const detachScript = `
local current = redis.call('HGET', KEYS[1], ARGV[1])
if current == ARGV[2] then return redis.call('HDEL', KEYS[1], ARGV[1]) end
return 0`;

const clock = `
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)`;

// A lease that has run out is not renewed, whether or not somebody has cleared it away.
const renewScript = `${clock}
if ARGV[3] == 'renew' then
  local ends = redis.call('ZSCORE', KEYS[1], ARGV[1])
  if not ends or tonumber(ends) <= now then return 0 end
end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[2]) then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return 1`;

const liveScript = `${clock}
return redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. string.format('%.0f', now), '+inf')`;

/** The commands that `defineCommand` adds. */
interface LeaseCommands {
  attachDevice(
    key: string,
    deviceId: string,
    counter: string,
    entry: string,
    dead: string,
    ttlMs: number,
  ): Promise<[number, string]>;
  detachDevice(key: string, deviceId: string, entry: string): Promise<number>;
  holdLease(key: string, gatewayId: string, leaseMs: number, how: 'open' | 'renew'): Promise<number>;
  listLeases(key: string): Promise<[now: string, leases: string[]]>;
}

/** Of all gateways, with the ends of their leases by the clock of Redis: one key, so that one look tells who lives. */
const gatewaysKey = 'keytrail:gateways';
// The hash tag keeps a user's devices in one slot of a cluster.
const devicesKey = (userId: string) => `keytrail:devices:{${userId}}`;
const userOfKey = (key: string) => key.slice(devicesKey('').length - 1, -1);
const canaryKeys = keyInEachRange('keytrail:canary:');

const leasesScript = `${clock}
return {string.format('%.0f', now), redis.call('ZRANGE', KEYS[1], 0, 999, 'WITHSCORES')}`;

const liveGateways: Question = {
  key: gatewaysKey,
  add: (pipeline) => (pipeline as unknown as { liveGateways(key: string): unknown }).liveGateways(gatewaysKey),
};

/**
 * Two-level leases: a gateway's lasts for one lease, a device's entry points to a gateway. A device is online when both are there.
 */
export class LeaseStore {
  readonly #redis: RedisConnection & LeaseCommands;
  readonly #deviceTtlMs: number;

  constructor(options: RedisAddress & { deviceTtlMs: number; onError: (error: Error) => void }) {
    this.#deviceTtlMs = options.deviceTtlMs;
    const redis = connectRedis(options, options.onError);
    redis.defineCommand('attachDevice', { numberOfKeys: 1, lua: attachScript });
    redis.defineCommand('detachDevice', { numberOfKeys: 1, lua: detachScript });
    redis.defineCommand('holdLease', { numberOfKeys: 1, lua: renewScript });
    redis.defineCommand('listLeases', { numberOfKeys: 1, lua: leasesScript });
    redis.defineCommand('liveGateways', { numberOfKeys: 1, lua: liveScript });
    this.#redis = redis as RedisConnection & LeaseCommands;
  }

  /** Takes the lease of a gateway id that nobody has. */
  async openGateway(gatewayId: string, leaseMs: number): Promise<void> {
    await withRedisSpan('EVALSHA open', () => this.#redis.holdLease(gatewaysKey, gatewayId, leaseMs, 'open'));
  }

  /** Renews the lease; false when it is gone: it ran out, or Redis lost its data. */
  async renewGateway(gatewayId: string, leaseMs: number): Promise<boolean> {
    return (
      (await withRedisSpan('EVALSHA renew', () => this.#redis.holdLease(gatewaysKey, gatewayId, leaseMs, 'renew'))) ===
      1
    );
  }

  async closeGateway(gatewayId: string): Promise<void> {
    await withRedisSpan('ZREM', () => this.#redis.zrem(gatewaysKey, gatewayId));
  }

  /** Whether the data are still those that were written: by a canary in each range of slots, and some entries. One round trip. */
  async look(entries: readonly { readonly userId: string; readonly deviceId: string }[]): Promise<Standing> {
    const mine = randomUUID();
    const answers = await withRedisSpan('GET', () =>
      askTogether(this.#redis, [
        ...canaryKeys.flatMap((key): Question[] => [
          { key, add: (pipeline) => pipeline.set(key, mine, 'NX') },
          { key, add: (pipeline) => pipeline.get(key) },
        ]),
        ...entries.map(({ userId, deviceId }): Question => {
          const key = devicesKey(userId);
          return { key, add: (pipeline) => pipeline.hexists(key, deviceId) };
        }),
      ]),
    );
    return {
      canaries: canaryKeys.map((_, range) => String(answers[range * 2 + 1])),
      entriesThere: answers.slice(canaryKeys.length * 2).map((there) => there === 1),
    };
  }

  /** Compare-and-set by counter. A newer entry only holds while its gateway lives. */
  async attach(userId: string, deviceId: string, entry: DeviceEntry): Promise<AttachOutcome> {
    let dead = '';
    for (;;) {
      const [held, text] = await withRedisSpan('EVALSHA attach', () =>
        this.#redis.attachDevice(
          devicesKey(userId),
          deviceId,
          String(entry.counter),
          formatDeviceEntry(entry),
          dead,
          this.#deviceTtlMs,
        ),
      );
      const other = text === '' ? undefined : parseDeviceEntry(text);
      if (held === 1) return { outcome: 'held', replaced: other };
      if (other && (await this.#liveGateways()).has(other.gatewayId)) return { outcome: 'newer-attached', by: other };
      dead = text;
    }
  }

  /** Compare-and-delete: a newer attachment of the device stays. */
  async detach(userId: string, deviceId: string, entry: DeviceEntry): Promise<void> {
    await withRedisSpan('EVALSHA detach', () =>
      this.#redis.detachDevice(devicesKey(userId), deviceId, formatDeviceEntry(entry)),
    );
  }

  /** Deletes all entries of a user, whoever holds their streams. */
  async forget(userId: string): Promise<void> {
    await withRedisSpan('DEL', () => this.#redis.del(devicesKey(userId)));
  }

  /** The device's entry, whether or not its gateway lives. */
  async find(userId: string, deviceId: string): Promise<DeviceEntry | undefined> {
    const text = await withRedisSpan('HGET', () => this.#redis.hget(devicesKey(userId), deviceId));
    return text ? parseDeviceEntry(text) : undefined;
  }

  /** All entries of the users, whether or not their gateways live. One round trip. */
  async findAll(userIds: readonly string[]): Promise<FoundDevice[]> {
    if (userIds.length === 0) return [];
    const answers = await withRedisSpan('HGETALL', () => askTogether(this.#redis, userIds.map(entriesOf)));
    return foundIn(userIds, answers);
  }

  /** Those of the users' devices that are online: their gateway lives. One round trip, to each node of a cluster. */
  async listOnline(userIds: readonly string[]): Promise<FoundDevice[]> {
    if (userIds.length === 0) return [];
    const [live, ...answers] = await withRedisSpan('HGETALL', () =>
      askTogether(this.#redis, [liveGateways, ...userIds.map(entriesOf)]),
    );
    const alive = new Set(live as string[]);
    return foundIn(userIds, answers).filter((device) => alive.has(device.entry.gatewayId));
  }

  /** The leases that were not cleared away yet, with how long each still lasts; less than 0: it ran out. By the clock of Redis. At most 1,000. */
  async listLeases(): Promise<{ readonly gatewayId: string; readonly endsInMs: number }[]> {
    const [now, leases] = await withRedisSpan('EVALSHA leases', () => this.#redis.listLeases(gatewaysKey));
    return leases.flatMap((gatewayId, place) =>
      place % 2 === 0 ? [{ gatewayId, endsInMs: Number(leases[place + 1]) - Number(now) }] : [],
    );
  }

  /** Entries of up to about `users` users, wherever they are in Redis, and whether or not their gateways live. */
  async someEntries(users: number): Promise<DeviceEntry[]> {
    const redis = this.#redis as RedisConnection;
    const nodes = redis instanceof Cluster ? redis.nodes('master') : [redis];
    const found: DeviceEntry[] = [];
    for (const node of nodes) {
      let cursor = '0';
      let keys = 0;
      do {
        const [next, page] = await withRedisSpan('SCAN', () =>
          node.scan(cursor, 'MATCH', devicesKey('*'), 'COUNT', 500),
        );
        cursor = next;
        keys += page.length;
        const pipeline = node.pipeline();
        for (const key of page) pipeline.hvals(key);
        for (const [, texts] of (await pipeline.exec()) ?? [])
          found.push(...((texts as string[] | null) ?? []).flatMap((text) => parseDeviceEntry(text) ?? []));
      } while (cursor !== '0' && keys < users / nodes.length);
    }
    return found;
  }

  /** All entries of all users, whether or not their gateways live: a page of some hundred users at a time, on a cluster node by node. */
  async *scanEntries(): AsyncIterable<FoundDevice[]> {
    const redis = this.#redis as RedisConnection;
    // SCAN may name a key twice.
    const seen = new Set<string>();
    for (const node of redis instanceof Cluster ? redis.nodes('master') : [redis]) {
      let cursor = '0';
      do {
        const [next, keys] = await withRedisSpan('SCAN', () =>
          node.scan(cursor, 'MATCH', devicesKey('*'), 'COUNT', 500),
        );
        cursor = next;
        const userIds = keys.map(userOfKey).filter((userId) => !seen.has(userId) && seen.add(userId));
        if (userIds.length > 0) yield await this.findAll([...new Set(userIds)]);
      } while (cursor !== '0');
    }
  }

  async ping(): Promise<void> {
    // Of a cluster, the node that has the leases.
    await this.#redis.exists(gatewaysKey);
  }

  close(): void {
    this.#redis.disconnect();
  }

  /** Resolves when questions to a cluster can be sorted by node; on a single server at once. */
  async ready(): Promise<void> {
    const redis = this.#redis as RedisConnection;
    if (redis instanceof Cluster && redis.status !== 'ready')
      await new Promise<void>((resolve) => redis.once('ready', () => resolve()));
  }

  async #liveGateways(): Promise<Set<string>> {
    const [live] = await withRedisSpan('EVALSHA live', () => askTogether(this.#redis, [liveGateways]));
    return new Set(live as string[]);
  }
}

function entriesOf(userId: string): Question {
  const key = devicesKey(userId);
  return { key, add: (pipeline) => pipeline.hgetall(key) };
}

function foundIn(userIds: readonly string[], answers: readonly unknown[]): FoundDevice[] {
  return answers.flatMap((fields, index) =>
    Object.entries(fields as Record<string, string>).flatMap(([deviceId, text]) => {
      const entry = parseDeviceEntry(text);
      return entry ? [{ userId: userIds[index] as string, deviceId, entry }] : [];
    }),
  );
}

/** The key that a user's entries stand under: its range of slots is the range that loses them. */
export function keyOfEntries(userId: string): string {
  return devicesKey(userId);
}
