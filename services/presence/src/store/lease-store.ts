import { withRedisSpan } from '@keytrail/telemetry';
import { Redis } from 'ioredis';
import { type DeviceEntry, formatDeviceEntry, parseDeviceEntry } from '../domain/device-entry.ts';

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
}

const gatewayKey = (gatewayId: string) => `keytrail:gateway:${gatewayId}`;
// The hash tag keeps a user's devices in one slot of a cluster.
const devicesKey = (userId: string) => `keytrail:devices:{${userId}}`;

/**
 * Two-level leases: a gateway's key lives for one lease, a device's entry points to a gateway. A device is online when both are there.
 */
export class LeaseStore {
  readonly #redis: Redis & LeaseCommands;
  readonly #deviceTtlMs: number;

  constructor(options: { url: string; deviceTtlMs: number; onError: (error: Error) => void }) {
    this.#deviceTtlMs = options.deviceTtlMs;
    const redis = new Redis(options.url, {
      maxRetriesPerRequest: 2,
      connectTimeout: 2_000,
      commandTimeout: 2_000,
      retryStrategy: (attempt) => Math.min(attempt * 50, 1_000),
    });
    redis.on('error', options.onError);
    redis.defineCommand('attachDevice', { numberOfKeys: 1, lua: attachScript });
    redis.defineCommand('detachDevice', { numberOfKeys: 1, lua: detachScript });
    this.#redis = redis as Redis & LeaseCommands;
  }

  /** Takes the lease of a gateway id that nobody has. */
  async openGateway(gatewayId: string, leaseMs: number): Promise<void> {
    await withRedisSpan('SET', () => this.#redis.set(gatewayKey(gatewayId), '1', 'PX', leaseMs));
  }

  /** Renews the lease; false when it is gone: it ran out, or Redis lost its data. */
  async renewGateway(gatewayId: string, leaseMs: number): Promise<boolean> {
    const answer = await withRedisSpan('SET', () => this.#redis.set(gatewayKey(gatewayId), '1', 'PX', leaseMs, 'XX'));
    return answer === 'OK';
  }

  async closeGateway(gatewayId: string): Promise<void> {
    await withRedisSpan('DEL', () => this.#redis.del(gatewayKey(gatewayId)));
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
      if (other && (await this.#gatewaysAlive([other.gatewayId])).has(other.gatewayId))
        return { outcome: 'newer-attached', by: other };
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

  /** All entries of the users, in one pipeline, whether or not their gateways live. */
  async findAll(userIds: readonly string[]): Promise<FoundDevice[]> {
    if (userIds.length === 0) return [];
    const answers = await withRedisSpan('HGETALL', () => {
      const pipeline = this.#redis.pipeline();
      for (const userId of userIds) pipeline.hgetall(devicesKey(userId));
      return pipeline.exec();
    });
    return (answers ?? []).flatMap(([error, fields], index) => {
      if (error) throw error;
      return Object.entries(fields as Record<string, string>).flatMap(([deviceId, text]) => {
        const entry = parseDeviceEntry(text);
        return entry ? [{ userId: userIds[index] as string, deviceId, entry }] : [];
      });
    });
  }

  /** Those of the users' devices that are online: their gateway lives. */
  async listOnline(userIds: readonly string[]): Promise<FoundDevice[]> {
    const found = await this.findAll(userIds);
    const alive = await this.#gatewaysAlive([...new Set(found.map((device) => device.entry.gatewayId))]);
    return found.filter((device) => alive.has(device.entry.gatewayId));
  }

  async isGatewayAlive(gatewayId: string): Promise<boolean> {
    return (await this.#gatewaysAlive([gatewayId])).has(gatewayId);
  }

  async ping(): Promise<void> {
    await this.#redis.ping();
  }

  close(): void {
    this.#redis.disconnect();
  }

  async #gatewaysAlive(gatewayIds: readonly string[]): Promise<Set<string>> {
    if (gatewayIds.length === 0) return new Set();
    const answers = await withRedisSpan('EXISTS', () => {
      const pipeline = this.#redis.pipeline();
      for (const id of gatewayIds) pipeline.exists(gatewayKey(id));
      return pipeline.exec();
    });
    return new Set(gatewayIds.filter((_, index) => answers?.[index]?.[1] === 1));
  }
}
