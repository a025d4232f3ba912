import { mkdirSync, statfsSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { checkoutFolder, ensurePostgres } from '@keytrail/local';
import { measureChurn } from './large-churn.ts';
import { makeLargeDatabase, measureClaimsAtSize } from './large-claims.ts';
import { rounded } from './measurement.ts';

const help = `Usage: make bench-large        some ten minutes and 4 GB of disk, which are freed again
       bin/with-node node test/bench/large.ts [--keys N] [--small N] [--churn SECONDS] [--json]

Shows that a claim costs the same whatever the number of prekeys, users and claims before it: the statement of ClaimPrekeyBundles on
PostgreSQL alone, in a database with many prekeys and one with few, in turns; then claims and uploads for a while, with autovacuum as
migrated. Prints a table and writes .local/bench-large.json; progress goes to stderr. docs/benchmarks.md says how to read it.

  --keys N         unclaimed one-time prekeys of the large database, both kinds together, a hundred of each per device; 2,000,000
  --small N        those of the small one; 10,000
  --churn SECONDS  how long to claim and upload in the large database; 180; 0 for not at all
  --json           print what was written to the file instead of the table

Exit codes: 0 measured, 1 it failed, 64 wrong use.`;

const options = readArguments();
const progress = (line: string) => process.stderr.write(`${line}\n`);
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => process.exit(130));
// A prekey of each kind takes 1.7 kB with its indexes; the log of writing them as much again.
const neededGigabytes = 1 + (options.keys / 1_000_000) * 1.8;
const { bavail, bsize } = statfsSync(tmpdir());
if ((bavail * bsize) / 1e9 < neededGigabytes) {
  progress(
    `${tmpdir()} has not the ${neededGigabytes.toFixed(1)} GB that this needs: set TMPDIR, or ask for fewer --keys`,
  );
  process.exit(1);
}

const startedAt = new Date().toISOString();
const postgres = await ensurePostgres({ own: true, settings: { max_wal_size: '1GB' } });
try {
  progress(`PostgreSQL ${postgres.version} (${postgres.origin})`);
  const small = await makeLargeDatabase(postgres.url, 'small', options.small, progress);
  const large = await makeLargeDatabase(postgres.url, 'large', options.keys, progress);
  const claims = await measureClaimsAtSize({ small, large }, progress);
  const churn = options.churn > 0 ? await measureChurn(large, options.churn, progress) : undefined;
  const result = { startedAt, postgres: postgres.version, databases: [small, large].map(describe), claims, churn };
  const folder = join(checkoutFolder, '.local');
  mkdirSync(folder, { recursive: true });
  writeFileSync(join(folder, 'bench-large.json'), `${JSON.stringify(result, undefined, 2)}\n`);
  process.stdout.write(options.json ? `${JSON.stringify(result, undefined, 2)}\n` : `${table(result)}\n`);
} finally {
  await postgres.stop();
}

function describe({ name, devices, keys, bytes, seededInSeconds }: Awaited<ReturnType<typeof makeLargeDatabase>>) {
  return { name, devices: devices.length, keys, megabytes: Math.round(bytes / 1e6), seededInSeconds };
}

interface Result {
  readonly claims: Awaited<ReturnType<typeof measureClaimsAtSize>>;
  readonly churn: Awaited<ReturnType<typeof measureChurn>> | undefined;
}

function table({ claims, churn }: Result): string {
  const lines = claims.compared.map(
    ({ what, small, large }) =>
      `${what.padEnd(58)} ${String(small.value).padStart(8)} ${String(large.value).padStart(8)}   ratio ${rounded(large.value / small.value)}`,
  );
  if (churn)
    lines.push(
      `buffers of a claim before the churn, at its worst, after it: ${churn.buffersBefore}, ${churn.buffersAtWorst}, ${churn.buffersAfter}`,
      `${churn.claims} claims and ${churn.uploads} uploads in ${churn.seconds} s; autovacuum ran ${churn.vacuums} times on the pools`,
    );
  return lines.join('\n');
}

function readArguments() {
  try {
    const { values } = parseArgs({
      options: {
        keys: { type: 'string', default: '2000000' },
        small: { type: 'string', default: '10000' },
        churn: { type: 'string', default: '180' },
        json: { type: 'boolean', default: false },
        help: { type: 'boolean', short: 'h', default: false },
      },
    });
    if (values.help) {
      process.stdout.write(`${help}\n`);
      process.exit(0);
    }
    const [keys, small, churn] = [values.keys, values.small, values.churn].map(Number) as [number, number, number];
    if (!(Number.isInteger(keys) && Number.isInteger(small) && keys >= small && small >= 2_000))
      throw new Error('--keys and --small take whole numbers, from 2,000 on, --keys the larger one');
    if (!(churn >= 0)) throw new Error('--churn takes a number of seconds');
    return { keys, small, churn, json: values.json };
  } catch (error) {
    process.stderr.write(`${(error as Error).message}\n\n${help}\n`);
    process.exit(64);
  }
}
