import { randomBytes } from 'node:crypto';
import { create } from '@bufbuild/protobuf';
import { KemPrekeySchema, OneTimePrekeySchema } from '@keytrail/contracts';
import { openDatabase } from '@keytrail/storage';
import pg from 'pg';
import { addKemPrekeys, addOneTimePrekeys, lockDevice } from '../../services/identity-keys/src/store/prekeys.ts';
import { connectClaimer, type LargeDatabase, sumOf } from './large-claims.ts';
import { quantile, rounded } from './measurement.ts';
import type { SeededDevice } from './seed-devices.ts';

/** So many that pools empty several times over: the front of each is what was deleted last. */
const busyDevices = 120;
const claimers = 4;
const sampleSeconds = 10;
const probesPerSample = 40;
/** Claims from a pool between two uploads: what is left is never none. */
const claimsPerFilling = 80;

/** Claims and uploads as fast as they go, over the same devices, and what a claim costs all the while. */
export async function measureChurn(database: LargeDatabase, seconds: number, progress: (line: string) => void) {
  const db = openDatabase({ url: database.url, service: 'bench', connections: claimers, statementTimeoutMs: 60_000 });
  const sql = new pg.Client({ connectionString: database.url });
  await sql.connect();
  const busy = database.devices.slice(0, busyDevices);
  const probe = await connectClaimer(database.url);
  let uploads = 0;
  let claims = 0;

  const { rows } = await sql.query<{ userId: string; deviceId: string; number: string; added: string }>(
    `SELECT user_id AS "userId", device_id AS "deviceId", device_number AS number, one_time_prekeys_added AS added FROM devices`,
  );
  const numbers = new Map(rows.map((row) => [`${row.userId}/${row.deviceId}`, row]));
  const nextKeyId = new Map<string, number>();
  const upload = async ({ userId, deviceId }: SeededDevice) => {
    const device = numbers.get(`${userId}/${deviceId}`);
    if (!device) throw new Error('a device that is not there');
    const first = nextKeyId.get(device.number) ?? Number(device.added) + 2;
    nextKeyId.set(device.number, first + claimsPerFilling);
    const ids = Array.from({ length: claimsPerFilling }, (_, i) => first + i);
    await db.transaction(async (tx) => {
      const number = BigInt(device.number);
      await lockDevice(tx, number);
      const oneTime = ids.map((keyId) => create(OneTimePrekeySchema, { keyId, publicKey: randomBytes(32) }));
      await addOneTimePrekeys(tx, number, oneTime);
      const kem = ids.map((keyId) =>
        create(KemPrekeySchema, { keyId, publicKey: randomBytes(1184), signature: randomBytes(64) }),
      );
      await addKemPrekeys(tx, number, kem);
    });
  };

  /** Each worker has devices of its own: it uploads to one, claims from it, and goes on. */
  const work = async (own: readonly SeededDevice[], until: () => boolean) => {
    const claimer = await connectClaimer(database.url);
    try {
      for (let n = 0; until(); n += 1) {
        const device = own[n % own.length] as SeededDevice;
        for (let claim = 0; claim < claimsPerFilling && until(); claim += 1) {
          await claimer.claim(device);
          claims += 1;
        }
        await upload(device);
        uploads += 1;
      }
    } finally {
      await claimer.end();
    }
  };

  const buffers = async () => {
    const found: number[] = [];
    for (let n = 0; n < probesPerSample; n += 1)
      found.push(sumOf(await probe.buffersOfClaim(busy[Math.floor(Math.random() * busy.length)] as SeededDevice)));
    return { median: quantile(found, 0.5), worst: quantile(found, 1) };
  };
  const pools = async () => {
    const { rows: found } = await sql.query<{ dead: string; live: string; vacuums: string; bytes: string }>(
      `SELECT sum(n_dead_tup) AS dead, sum(n_live_tup) AS live, sum(autovacuum_count) AS vacuums, sum(pg_total_relation_size(relid)) AS bytes
         FROM pg_stat_user_tables WHERE relname LIKE 'unclaimed_%'`,
    );
    const [row] = found;
    return {
      deadRows: Number(row?.dead),
      liveRows: Number(row?.live),
      vacuums: Number(row?.vacuums),
      megabytes: Math.round(Number(row?.bytes) / 1e6),
    };
  };

  try {
    const vacuumsBefore = (await pools()).vacuums;
    const before = await buffers();
    progress(`churn: buffers of a claim ${before.median} before; ${seconds} s of claims and uploads`);
    const endAt = performance.now() + seconds * 1000;
    const going = () => performance.now() < endAt;
    const workers = Array.from({ length: claimers }, (_, w) =>
      work(
        busy.filter((_, d) => d % claimers === w),
        going,
      ),
    );
    const ended = Promise.all(workers).then(() => true);
    const samples: object[] = [];
    let worst = before.median;
    for (let at = sampleSeconds; ; at += sampleSeconds) {
      const over = await Promise.race([
        ended,
        new Promise<false>((resolve) => setTimeout(resolve, sampleSeconds * 1000, false)),
      ]);
      const found = await buffers();
      const state = await pools();
      worst = Math.max(worst, found.median);
      samples.push({ seconds: at, claims, uploads, buffersMedian: found.median, buffersWorst: found.worst, ...state });
      progress(
        `churn: ${at} s, ${claims} claims, buffers of a claim ${found.median} (worst ${found.worst}), dead rows ${state.deadRows}, autovacuums ${state.vacuums}`,
      );
      if (over) break;
    }
    const after = await buffers();
    return {
      seconds,
      claims,
      uploads,
      claimsPerSecond: rounded(claims / seconds),
      buffersBefore: before.median,
      buffersAtWorst: worst,
      buffersAfter: after.median,
      vacuums: (await pools()).vacuums - vacuumsBefore,
      samples,
    };
  } finally {
    await probe.end();
    await sql.end();
    await db.close();
  }
}
