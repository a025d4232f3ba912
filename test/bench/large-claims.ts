import { createHash, randomBytes, randomUUID } from 'node:crypto';
import { join } from 'node:path';
import { checkoutFolder } from '@keytrail/local';
import { createServiceDatabase, migrateDatabase } from '@keytrail/storage';
import pg from 'pg';
import { claimWithoutWaiting, noPass } from '../../services/identity-keys/src/store/claims.ts';
import { quantile, rounded, WrongAnswers } from './measurement.ts';
import { type SeededDevice, seedDevices } from './seed-devices.ts';

export const keysOfAKind = 100;
/** As many as a pool may hold by default. */
const fullPool = 1_000;
const claims = 1_500;
const probes = 300;

export interface LargeDatabase {
  readonly name: string;
  readonly url: string;
  readonly devices: readonly SeededDevice[];
  /** A device whose pools are full. */
  readonly full: SeededDevice;
  /** Unclaimed one-time prekeys of both kinds. */
  readonly keys: number;
  readonly bytes: number;
  readonly seededInSeconds: number;
}

/** A migrated database of identity-keys with so many unclaimed prekeys, a hundred of each kind per device. */
export async function makeLargeDatabase(
  adminUrl: string,
  name: string,
  keys: number,
  progress: (line: string) => void,
): Promise<LargeDatabase> {
  const startedAt = performance.now();
  const role = `keytrail_large_${name}`;
  const url = await createServiceDatabase({ adminUrl, name: role, role, password: randomBytes(12).toString('hex') });
  await migrateDatabase({ url, migrations: join(checkoutFolder, 'services/identity-keys/prisma/migrations') });
  const sql = new pg.Client({ connectionString: url });
  await sql.connect();
  try {
    const count = Math.ceil(keys / (2 * keysOfAKind));
    progress(`${name}: writing ${count} devices with ${keysOfAKind} unclaimed prekeys of each kind`);
    const devices = await seedDevices(sql, name, count, keysOfAKind);
    const [full] = await seedDevices(sql, `${name}-full`, 1, fullPool);
    const { rows } = await sql.query<{ keys: string; bytes: string }>(
      `SELECT (SELECT count(*) FROM unclaimed_one_time_prekeys) + (SELECT count(*) FROM unclaimed_one_time_kem_prekeys) AS keys,
              pg_database_size(current_database()) AS bytes`,
    );
    const seededInSeconds = Math.round((performance.now() - startedAt) / 1000);
    const made = {
      ...{ name, url, devices, seededInSeconds },
      full: full as SeededDevice,
      keys: Number(rows[0]?.keys),
      bytes: Number(rows[0]?.bytes),
    };
    progress(`${name}: ${made.keys} unclaimed prekeys, ${Math.round(made.bytes / 1e6)} MB, in ${seededInSeconds} s`);
    return made;
  } finally {
    await sql.end();
  }
}

/** A connection that claims, and tells what a claim took. */
export interface Claimer {
  /** Milliseconds, with the round trip. Throws WrongAnswers unless the bundle is whole. */
  claim(device: SeededDevice): Promise<number>;
  /** Pages that a claim looked at, cached or not, by table and index: the same on every machine. */
  buffersOfClaim(device: SeededDevice): Promise<Readonly<Record<string, number>>>;
  end(): Promise<void>;
}

export async function connectClaimer(url: string): Promise<Claimer> {
  const sql = new pg.Client({ connectionString: url });
  await sql.connect();
  const digest = createHash('sha256').digest();
  const run = async ({ userId, deviceId }: SeededDevice) => {
    const { rows } = await sql.query({
      name: claimWithoutWaiting.name,
      text: claimWithoutWaiting.text,
      values: ['bench-large', randomUUID(), digest, [userId], [deviceId], 0, ...noPass],
    });
    if (rows[0]?.one_time_prekey === null || rows[0]?.kem_prekey_id === null || rows.length !== 1)
      throw new WrongAnswers('a claim had no whole bundle');
  };
  // What this connection has counted and not handed in yet, which it does between transactions alone.
  const fetched = async () => {
    const { rows } = await sql.query<{ name: string; fetched: string }>(
      `SELECT relname AS name, pg_stat_get_xact_blocks_fetched(oid) AS fetched FROM pg_class
        WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'i')`,
    );
    return rows.map((row) => [row.name, Number(row.fetched)] as const);
  };
  return {
    async claim(device) {
      const startedAt = performance.now();
      await run(device);
      return performance.now() - startedAt;
    },
    async buffersOfClaim(device) {
      await sql.query('BEGIN');
      const before = await fetched();
      await run(device);
      const after = new Map(await fetched());
      await sql.query('COMMIT');
      const looked = before.map(([relation, count]) => [relation, (after.get(relation) ?? 0) - count] as const);
      return Object.fromEntries(looked.filter(([, count]) => count > 0));
    },
    end: () => sql.end(),
  };
}

export function sumOf(buffers: Readonly<Record<string, number>>): number {
  return Object.values(buffers).reduce((sum, each) => sum + each, 0);
}

interface Compared {
  readonly what: string;
  readonly small: { readonly value: number };
  readonly large: { readonly value: number };
}

/** Claims at both sizes, in turns: of devices taken at random, and of one whose pools are full. */
export async function measureClaimsAtSize(
  databases: { readonly small: LargeDatabase; readonly large: LargeDatabase },
  progress: (line: string) => void,
): Promise<{ readonly compared: readonly Compared[]; readonly buffersByRelation: object }> {
  const sizes = ['small', 'large'] as const;
  const claimers = {
    small: await connectClaimer(databases.small.url),
    large: await connectClaimer(databases.large.url),
  };
  const next = {
    small: inShuffledTurns(databases.small.devices),
    large: inShuffledTurns(databases.large.devices),
  };
  try {
    progress(`claims: ${claims} at either size, in turns`);
    const ms = { small: [] as number[], large: [] as number[] };
    const buffers = { small: [] as number[], large: [] as number[] };
    const byRelation = { small: {}, large: {} };
    const full = { small: [] as number[], large: [] as number[] };
    for (let n = -100; n < claims; n += 1)
      for (const size of sizes) {
        const took = await claimers[size].claim(next[size]());
        if (n >= 0) ms[size].push(took);
      }
    for (let n = 0; n < probes; n += 1)
      for (const size of sizes) {
        byRelation[size] = await claimers[size].buffersOfClaim(next[size]());
        buffers[size].push(sumOf(byRelation[size]));
        full[size].push(sumOf(await claimers[size].buffersOfClaim(databases[size].full)));
      }
    const compared = (what: string, values: typeof ms, q: number): Compared => ({
      what,
      small: { value: rounded(quantile(values.small, q)) },
      large: { value: rounded(quantile(values.large, q)) },
    });
    const lines = [
      compared('buffers of a claim, median', buffers, 0.5),
      compared('buffers of a claim, p99', buffers, 0.99),
      compared('milliseconds of a claim, median', ms, 0.5),
      compared('milliseconds of a claim, p99', ms, 0.99),
      compared(`buffers of a claim from a pool of ${fullPool}, median`, full, 0.5),
    ];
    // Of the last claim at either size.
    return { compared: lines, buffersByRelation: byRelation };
  } finally {
    await Promise.all([claimers.small.end(), claimers.large.end()]);
  }
}

/** One after the other in an order without a pattern, from the first again after the last, so that all pools go down alike. */
function inShuffledTurns(devices: readonly SeededDevice[]): () => SeededDevice {
  let n = 0;
  return () => devices[n++ % devices.length] as SeededDevice;
}
