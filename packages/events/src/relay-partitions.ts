import type { DedicatedConnection } from '@keytrail/storage';
import { partitionCount } from './outbox.ts';

// First key of the advisory locks; the second is the partition, or `member`.
const lockClass = 0x6b74_6f62;
const member = 1000;

/** The partitions that one database session holds, by session-level advisory locks: they end with the session. */
export interface HeldPartitions {
  readonly held: ReadonlySet<number>;
  /** Takes or gives up partitions towards an even share among the relays of this database. Returns whether it gave some up. */
  rebalance(): Promise<boolean>;
}

export async function joinRelays(session: DedicatedConnection): Promise<HeldPartitions> {
  const held = new Set<number>();
  await session.query('SELECT pg_advisory_lock_shared($1, $2)', [lockClass, member]);

  async function share(): Promise<number> {
    const { rows } = await session.query<{ members: number }>(
      `SELECT count(*)::int AS members FROM pg_locks
       WHERE locktype = 'advisory' AND granted AND classid = $1 AND objid = $2 AND objsubid = 2
         AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`,
      [lockClass, member],
    );
    return Math.ceil(partitionCount / Math.max(1, rows[0]?.members ?? 1));
  }

  return {
    held,
    async rebalance() {
      const fair = await share();
      const surplus = [...held].slice(fair);
      for (const partition of surplus) {
        held.delete(partition);
        await session.query('SELECT pg_advisory_unlock($1, $2)', [lockClass, partition]);
      }
      for (let partition = 0; partition < partitionCount && held.size < fair; partition++) {
        if (held.has(partition) || surplus.includes(partition)) continue;
        const { rows } = await session.query<{ taken: boolean }>('SELECT pg_try_advisory_lock($1, $2) AS taken', [
          lockClass,
          partition,
        ]);
        if (rows[0]?.taken) held.add(partition);
      }
      return surplus.length > 0;
    },
  };
}
