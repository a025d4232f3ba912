import { createHash, randomUUID } from 'node:crypto';
import { createClient } from '@connectrpc/connect';
import { IdentityKeysService, NoBundleReason, PrekeyKind } from '@keytrail/contracts';
import { createGrpcTransport } from '@keytrail/rpc';
import pg from 'pg';
import { claimWithoutWaiting, noPass } from '../../services/identity-keys/src/store/claims.ts';
import type { Bench } from './bench.ts';
import { type Measured, quantile, rounded, rowOf, WrongAnswers } from './measurement.ts';
import { type SeededDevice, seedDevices } from './seed-devices.ts';

/** One call that claims a bundle of each of so many devices, against the statement under it alone; one after the other, in turns. */
export async function measureClaims(
  { constellation, progress }: Bench,
  devicesPerClaim: number,
  { warmUps = 15, claims = 60 } = {},
): Promise<Measured> {
  const name = `identity.claim.${devicesPerClaim}`;
  const sql = new pg.Client({ connectionString: constellation.databaseUrls['identity-keys'] });
  await sql.connect();
  const transport = createGrpcTransport({
    target: constellation.grpcTarget('identity-keys'),
    authorization: () => authorization,
  });
  let authorization = '';
  try {
    progress(`${name}: stocking the pools of ${devicesPerClaim} devices`);
    // Both take from the same pools, and no pool becomes low.
    const devices = await seedDevices(sql, `${devicesPerClaim}`, devicesPerClaim, 2 * (warmUps + claims) + 30);
    const caller = devices[0] as SeededDevice;
    authorization = `Bearer ${await constellation.issuer.token(caller)}`;
    const client = createClient(IdentityKeysService, transport);

    const ours = async () => {
      const { results } = await client.claimPrekeyBundles({ claimId: randomUUID(), devices });
      const whole = results.filter(
        ({ bundle, noBundleBecause }) =>
          noBundleBecause === NoBundleReason.UNSPECIFIED &&
          bundle?.oneTimePrekey !== undefined &&
          bundle.kemPrekeyKind === PrekeyKind.ONE_TIME,
      );
      if (whole.length !== devicesPerClaim) throw new WrongAnswers(`a claim had ${whole.length} whole bundles`);
    };
    const bare = async () => {
      const { rows } = await sql.query({
        name: claimWithoutWaiting.name,
        text: claimWithoutWaiting.text,
        values: [
          'bench-bare',
          randomUUID(),
          createHash('sha256').update(randomUUID()).digest(),
          devices.map(({ userId }) => userId),
          devices.map(({ deviceId }) => deviceId),
          20,
          ...noPass,
        ],
      });
      if (rows.filter((row) => row.one_time_prekey !== null && row.kem_prekey_id !== null).length !== devicesPerClaim)
        throw new WrongAnswers('the statement left a device without a one-time prekey');
    };

    const took = { bare: [] as number[], ours: [] as number[] };
    for (let n = 0; n < warmUps + claims; n += 1) {
      for (const [who, claim] of [
        ['bare', bare],
        ['ours', ours],
      ] as const) {
        const startedAt = performance.now();
        await claim();
        if (n >= warmUps) took[who].push(performance.now() - startedAt);
      }
    }
    const spread = (each: readonly number[]) =>
      Object.fromEntries([0, 0.1, 0.5, 0.9, 1].map((q) => [`p${q * 100}`, rounded(quantile(each, q))]));
    return {
      rows: [rowOf(name, 'ms', quantile(took.ours, 0.5), quantile(took.bare, 0.5))],
      details: { [name]: { claims, ours: spread(took.ours), bare: spread(took.bare) } },
    };
  } finally {
    transport.close();
    await sql.end();
  }
}
