import { randomUUID } from 'node:crypto';
import { join } from 'node:path';
import { create, toBinary } from '@bufbuild/protobuf';
import { createClient } from '@connectrpc/connect';
import {
  ClaimPrekeyBundlesRequestSchema,
  ClaimPrekeyBundlesResponseSchema,
  IdentityKeysService,
  PrekeyKind,
} from '@keytrail/contracts';
import { createGrpcTransport } from '@keytrail/rpc';
import pg from 'pg';
import { claimWithoutWaiting } from '../../services/identity-keys/src/store/claims.ts';
import type { Bench } from './bench.ts';
import { type CallPlan, loadByCalls } from './call-load.ts';
import type { Round } from './load.ts';
import { type Measured, median, rounded, rowOf, WrongAnswers } from './measurement.ts';
import { findPgbench, type PgbenchRound, runPgbench } from './pgbench.ts';
import { processorSecondsOfFamily } from './processor-time.ts';
import { addPrekeys, devicesPerUser, type SeededDevice, seedCallers, seedDevices } from './seed-devices.ts';

const callers = 40;
const rounds = 5;
const seconds = 3;
const pgbenchClients = [4, 10, 40];
/** Unclaimed prekeys of each kind before a round, all pools together: several times what a round takes, as it takes at random. */
const stock = 60_000;

/** Of one device, whose pool all callers want the front of; of a thousand devices, so that they seldom meet. */
const deviceCounts = { hot: 1, spread: 999 } as const;

/** Claims of one bundle each by forty devices, with the whole chain on, against pgbench with the statement under them, in turns. */
export async function measureClaimRate(bench: Bench, which: 'hot' | 'spread'): Promise<Measured> {
  const { constellation, progress } = bench;
  const name = `identity.claim.${which}`;
  const databaseUrl = constellation.databaseUrls['identity-keys'];
  const [replica] = constellation.of('identity-keys');
  if (!replica) throw new Error('there is no identity-keys service');
  const sql = new pg.Client({ connectionString: databaseUrl });
  await sql.connect();
  try {
    progress(`${name}: stocking pools`);
    const count = deviceCounts[which];
    let used = 0;
    const refill = async () => {
      await addPrekeys(sql, which, Math.ceil(used / count));
      used = 0;
    };
    const devices = await seedDevices(sql, which, count, Math.ceil(stock / count));
    const claimers = await seedCallers(sql, `claimer-${which}`, callers);
    const tokens = await Promise.all(claimers.map((claimer) => constellation.issuer.token(claimer)));
    const bytes = await bytesOfOneClaim(bench, devices[0] as SeededDevice);
    const plan: CallPlan = {
      address: replica.grpcTarget,
      path: `/${IdentityKeysService.typeName}/ClaimPrekeyBundles`,
      callers: tokens.map((token) => ({ headers: { authorization: `Bearer ${token}` } })),
      requests: devices.map((device) => Buffer.from(requestOf(device)).toString('base64')),
      // After the tag and the length of claim_id, the first field.
      uuidAt: 2,
      // Key ids take up to five bytes each, and names of devices differ.
      answerBytes: { least: bytes - 24, most: bytes + 24 },
      seconds,
    };
    const ours = async () => {
      await refill();
      const before = processorSecondsOfFamily(constellation.postgres.pid ?? 0);
      const { answered, ...round } = await loadByCalls(replica.process.pid, plan, join(bench.folder, 'load'));
      await checkClaims(sql, answered);
      used += answered;
      const postgresSeconds = processorSecondsOfFamily(constellation.postgres.pid ?? 0) - before;
      return { ...round, postgresCores: postgresSeconds / seconds };
    };
    const program = findPgbench();
    if (!program) progress(`${name}: there is no pgbench on this machine, so there is no baseline`);
    const bare = async (clients: number) => {
      await refill();
      const round = await runPgbench({
        program: program ?? '',
        databaseUrl,
        variables: [
          '\\set n random(1, 999999999999)',
          `\\set u random(1, ${Math.ceil(count / devicesPerUser)})`,
          `\\set d random(1, ${Math.min(count, devicesPerUser)})`,
        ],
        statement: claimWithoutWaiting.text,
        parameters: [
          `('pgbench-' || (:client_id)::integer)`,
          `('00000000-0000-4000-8000-' || lpad((:n)::bigint::text, 12, '0'))::uuid`,
          `sha256('bench')`,
          `ARRAY['bench-${which}-' || (:u)::integer]`,
          `ARRAY['device-' || (:d)::integer]`,
          '20',
          'NULL',
          'NULL',
          'NULL',
        ],
        clients,
        seconds,
        folder: join(bench.folder, 'load'),
      });
      used += round.perSecond * seconds;
      return round;
    };

    progress(`${name}: warming up`);
    await ours();
    const tried: PgbenchRound[] = [];
    if (program) for (const clients of pgbenchClients) tried.push(await bare(clients));
    const best = tried.reduce<PgbenchRound | undefined>((a, b) => (a && a.perSecond > b.perSecond ? a : b), undefined);
    const found: { bare: PgbenchRound[]; ours: (Round & { postgresCores: number })[] } = { bare: [], ours: [] };
    for (let n = 1; n <= rounds; n += 1) {
      if (best) found.bare.push(await bare(best.clients));
      found.ours.push(await ours());
      progress(
        `${name}: round ${n} of ${rounds}, pgbench ${Math.round(found.bare.at(-1)?.perSecond ?? 0)}, ours ${Math.round(found.ours.at(-1)?.requestsPerSecond ?? 0)} claims/s`,
      );
    }
    const value = median(found.ours.map((round) => round.requestsPerSecond));
    const baseline = best && median(found.bare.map((round) => round.perSecond));
    return {
      rows: [rowOf(name, 'claims/s', value, baseline)],
      details: {
        [name]: {
          callers,
          devices: count,
          roundSeconds: seconds,
          pgbenchTried: tried.map(inShort),
          pgbench: found.bare.map(inShort),
          ours: found.ours.map(inShort),
        },
      },
    };
  } finally {
    await sql.end();
  }
}

function requestOf(device: SeededDevice): Uint8Array {
  return toBinary(
    ClaimPrekeyBundlesRequestSchema,
    create(ClaimPrekeyBundlesRequestSchema, { claimId: randomUUID(), devices: [device] }),
  );
}

/** What an answer with a whole bundle has. */
async function bytesOfOneClaim({ constellation }: Bench, device: SeededDevice): Promise<number> {
  // Its own: the claims of others are counted.
  const token = await constellation.issuer.token(device);
  const transport = createGrpcTransport({
    target: constellation.grpcTarget('identity-keys'),
    authorization: () => `Bearer ${token}`,
  });
  try {
    const client = createClient(IdentityKeysService, transport);
    const answer = await client.claimPrekeyBundles({ claimId: randomUUID(), devices: [device] });
    const bundle = answer.results[0]?.bundle;
    if (!bundle?.oneTimePrekey || bundle.kemPrekeyKind !== PrekeyKind.ONE_TIME)
      throw new WrongAnswers('the first claim had no whole bundle');
    return toBinary(ClaimPrekeyBundlesResponseSchema, answer).byteLength;
  } finally {
    transport.close();
  }
}

/** As many claims as answers, each with a one-time prekey of either kind that no other claim has. Forgets them then. */
async function checkClaims(sql: pg.Client, answered: number): Promise<void> {
  const { rows } = await sql.query<Record<'claims' | 'one_time' | 'kem', string>>(
    `SELECT count(*) AS claims, count(DISTINCT (device_numbers[1], one_time_prekey_ids[1])) FILTER (WHERE one_time_prekey_ids[1] IS NOT NULL) AS one_time,
            count(DISTINCT (device_numbers[1], kem_prekey_ids[1])) FILTER (WHERE kem_prekey_ids[1] IS NOT NULL) AS kem
       FROM claims WHERE caller LIKE 'device:bench-claimer-%'`,
  );
  const counted = rows[0];
  if ([counted?.claims, counted?.one_time, counted?.kem].some((each) => Number(each) !== answered))
    throw new WrongAnswers(`${answered} answers, but in the database ${JSON.stringify(counted)}`);
  await sql.query(`DELETE FROM claims WHERE caller LIKE 'device:bench-claimer-%'`);
}

function inShort(round: object): Record<string, number> {
  return Object.fromEntries(Object.entries(round).map(([key, value]) => [key, rounded(value as number)]));
}
