import { Cluster, Redis } from 'ioredis';
import { slotOf } from '../domain/slot-ranges.ts';

export interface RedisAddress {
  /** Of a single server. */
  readonly url: string;
  /** Of some nodes of a cluster, which tell of the others; empty: there is no cluster, and `url` counts. */
  readonly clusterUrls: readonly string[];
}

/** A connection to a server, or connections to all nodes of a cluster. */
export type RedisConnection = Redis | Cluster;

export function connectRedis({ url, clusterUrls }: RedisAddress, onError: (error: Error) => void): RedisConnection {
  const patience = { maxRetriesPerRequest: 2, connectTimeout: 2_000, commandTimeout: 2_000 };
  const retryStrategy = (attempt: number) => Math.min(attempt * 50, 1_000);
  const [node] = clusterUrls;
  const redis =
    node === undefined
      ? new Redis(url, { ...patience, retryStrategy })
      : new Cluster([...clusterUrls], {
          redisOptions: { ...patience, ...credentialsOf(node) },
          clusterRetryStrategy: retryStrategy,
          retryDelayOnFailover: 100,
          slotsRefreshTimeout: 2_000,
        });
  redis.on('error', onError);
  return redis;
}

const awayReply =
  /^(LOADING|MASTERDOWN|CLUSTERDOWN|READONLY|TRYAGAIN|UNKILLABLE|BUSY|OOM|Too many Cluster redirections)\b/;
const awayMessage =
  /^(Command timed out|Connection is closed|Stream isn't writeable|Failed to refresh slots cache|None of startup nodes is available|Cluster isn't ready)/;

/** Whether an error says that Redis cannot be asked now; anything else is a fault of ours. */
export function isRedisAway(error: unknown): boolean {
  if (!(error instanceof Error)) return false;
  if (error.name === 'MaxRetriesPerRequestError' || error.name === 'ClusterAllFailedError') return true;
  const { code } = error as { code?: unknown };
  if (typeof code === 'string' && /^E[A-Z_]+$/.test(code)) return true;
  return awayReply.test(error.message) || awayMessage.test(error.message);
}

/** Nodes that are found by way of the named ones have the same credentials. */
function credentialsOf(url: string): { username?: string; password?: string; tls?: object } {
  const { protocol, username, password } = new URL(url);
  return {
    ...(username && { username: decodeURIComponent(username) }),
    ...(password && { password: decodeURIComponent(password) }),
    ...(protocol === 'rediss:' && { tls: {} }),
  };
}

/** A command that is to be asked together with others. */
export interface Question {
  readonly key: string;
  add(pipeline: ReturnType<RedisConnection['pipeline']>): void;
}

/** The answers in the order of the questions: one round trip to each node that holds one of the keys, all at the same time. */
export async function askTogether(redis: RedisConnection, questions: readonly Question[]): Promise<unknown[]> {
  try {
    return await askOnce(redis, questions);
  } catch (error) {
    // The slots have moved since this connection learned where they are.
    if (!(redis instanceof Cluster) || !/^(MOVED|ASK|All keys in the pipeline)/.test((error as Error).message))
      throw error;
    await new Promise<void>((resolve) => redis.refreshSlotsCache(() => resolve()));
    return askOnce(redis, questions);
  }
}

async function askOnce(redis: RedisConnection, questions: readonly Question[]): Promise<unknown[]> {
  const answers: unknown[] = Array.from({ length: questions.length });
  await Promise.all(
    groupByNode(redis, questions).map(async (positions) => {
      const pipeline = redis.pipeline();
      for (const position of positions) questions[position]?.add(pipeline);
      for (const [at, [error, answer]] of ((await pipeline.exec()) ?? []).entries()) {
        if (error) throw error;
        answers[positions[at] as number] = answer;
      }
    }),
  );
  return answers;
}

function groupByNode(redis: RedisConnection, questions: readonly Question[]): number[][] {
  if (!(redis instanceof Cluster)) return [[...questions.keys()]];
  const byNode = new Map<string, number[]>();
  for (const [position, { key }] of questions.entries()) {
    const node = redis.slots[slotOf(key)]?.join(' ') ?? '';
    const group = byNode.get(node);
    if (group) group.push(position);
    else byNode.set(node, [position]);
  }
  return [...byNode.values()];
}
