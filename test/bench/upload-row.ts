import { randomUUID } from 'node:crypto';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { create, toBinary } from '@bufbuild/protobuf';
import { IdentityKeysService, ReplenishPrekeysRequestSchema } from '@keytrail/contracts';
import { createKemPrekey, createOneTimePrekey } from '@keytrail/crypto';
import { nodePrimitives } from '@keytrail/crypto/node';
import pg from 'pg';
import type { Bench } from './bench.ts';
import { loadByCalls } from './call-load.ts';
import { type BenchDevice, registerDevice } from './device.ts';
import { type Round, run } from './load.ts';
import { type Measured, median, rounded, rowOf, WrongAnswers } from './measurement.ts';
import type { VerificationPlan } from './verification-driver.ts';

const name = 'identity.upload.100';
const keysOfAKind = 100;
const uploaders = 8;
/** Pools hold a thousand. */
const uploadsEach = 9;
const rounds = 5;

/** Uploads of a hundred one-time prekeys of each kind, verified and stored, against the verification alone, in turns. */
export async function measureUploads(bench: Bench): Promise<Measured> {
  const { constellation, folder, progress } = bench;
  const [replica] = constellation.of('identity-keys');
  if (!replica) throw new Error('there is no identity-keys service');
  progress(`${name}: making keys`);
  const found: { ours: Round[]; bare: { uploadsPerSecond: number }[] } = { ours: [], bare: [] };
  const sql = new pg.Client({ connectionString: constellation.databaseUrls['identity-keys'] });
  await sql.connect();
  try {
    for (let n = 0; n <= rounds; n += 1) {
      const devices = await Promise.all(Array.from({ length: uploaders }, () => newDevice(bench)));
      const tokens = await Promise.all(devices.map((device) => constellation.issuer.token(device)));
      const uploads = devices.map((device) => Array.from({ length: uploadsEach }, (_, i) => uploadOf(device, i)));
      const bare = await verifyAlone(
        {
          atOnce: uploaders,
          uploads: devices.flatMap(({ userId, deviceId, signingKey }, d) =>
            (uploads[d] ?? []).map((request) => ({
              ...{ userId, deviceId, request },
              signingKey: Buffer.from(signingKey.publicKey).toString('base64'),
            })),
          ),
        },
        folder,
      );
      const { answered, ...ours } = await loadByCalls(
        replica.process.pid,
        {
          address: replica.grpcTarget,
          path: `/${IdentityKeysService.typeName}/ReplenishPrekeys`,
          callers: tokens.map((token, d) => ({
            headers: { authorization: `Bearer ${token}` },
            requests: uploads[d] ?? [],
          })),
          requests: [],
          answerBytes: { least: 4, most: 200 },
          seconds: 120,
        },
        join(folder, 'load'),
      );
      if (answered !== uploaders * uploadsEach) throw new WrongAnswers(`${answered} uploads were answered`);
      await checkPools(sql, devices);
      progress(
        `${name}: ${n === 0 ? 'warm-up' : `round ${n} of ${rounds}`}, verification alone ${Math.round(bare)}, ours ${Math.round(ours.requestsPerSecond)} uploads/s`,
      );
      if (n === 0) continue;
      found.bare.push({ uploadsPerSecond: bare });
      found.ours.push(ours);
    }
  } finally {
    await sql.end();
  }
  const value = median(found.ours.map((round) => round.requestsPerSecond));
  const baseline = median(found.bare.map((round) => round.uploadsPerSecond));
  return {
    rows: [rowOf(name, 'uploads/s', value, baseline)],
    details: {
      [name]: {
        uploaders,
        uploadsInRound: uploaders * uploadsEach,
        verification: found.bare.map(({ uploadsPerSecond }) => rounded(uploadsPerSecond)),
        ours: found.ours.map((round) =>
          Object.fromEntries(Object.entries(round).map(([key, each]) => [key, rounded(each)])),
        ),
      },
    },
  };
}

let users = 0;

function newDevice({ constellation }: Bench): Promise<BenchDevice> {
  users += 1;
  const services = {
    identityKeys: constellation.grpcTarget('identity-keys'),
    conversation: constellation.grpcTarget('conversation'),
    session: constellation.grpcTarget('session'),
    presence: constellation.grpcTarget('presence'),
    issuer: constellation.issuer.url,
  };
  return registerDevice(services, `bench-uploader-${users}`, 'phone');
}

// Making ML-KEM keys takes longer than verifying them: devices share theirs, each with a signature of its own.
const kemKeyPairs = Array.from({ length: keysOfAKind }, () => nodePrimitives.mlKem768.keyPair());
let made = 0;
const primitives = {
  ...nodePrimitives,
  mlKem768: { ...nodePrimitives.mlKem768, keyPair: () => kemKeyPairs[made++ % keysOfAKind] as (typeof kemKeyPairs)[0] },
};

/** Base64. */
function uploadOf(device: BenchDevice, number: number): string {
  // Of the KEM ids, 1 is the last-resort prekey's.
  const firstKeyId = 2 + number * keysOfAKind;
  const ids = Array.from({ length: keysOfAKind }, (_, i) => firstKeyId + i);
  const request = create(ReplenishPrekeysRequestSchema, {
    requestId: randomUUID(),
    oneTimePrekeys: ids.map((keyId) => createOneTimePrekey(primitives, keyId).upload),
    oneTimeKemPrekeys: ids.map((keyId) => createKemPrekey(primitives, device, keyId, 'kem-one-time').upload),
  });
  return Buffer.from(toBinary(ReplenishPrekeysRequestSchema, request)).toString('base64');
}

async function verifyAlone(plan: VerificationPlan, folder: string): Promise<number> {
  const file = join(folder, 'verification-plan.json');
  writeFileSync(file, JSON.stringify(plan));
  const said = await run(process.execPath, ['test/bench/verification-driver.ts', file]);
  return plan.uploads.length / (JSON.parse(said) as { seconds: number }).seconds;
}

/** All of them in the pools. */
async function checkPools(sql: pg.Client, devices: readonly BenchDevice[]): Promise<void> {
  const { rows } = await sql.query<{ one_time: string; kem: string }>(
    `SELECT (SELECT count(*) FROM unclaimed_one_time_prekeys p WHERE p.device_number = d.device_number) AS one_time,
            (SELECT count(*) FROM unclaimed_one_time_kem_prekeys p WHERE p.device_number = d.device_number) AS kem
       FROM devices d WHERE user_id = ANY($1)`,
    [devices.map(({ userId }) => userId)],
  );
  const expected = uploadsEach * keysOfAKind;
  if (
    rows.length !== uploaders ||
    rows.some((row) => Number(row.one_time) !== expected || Number(row.kem) !== expected)
  )
    throw new WrongAnswers('not all uploaded prekeys are in the pools');
}
