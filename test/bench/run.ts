import { execFileSync } from 'node:child_process';
import { mkdirSync } from 'node:fs';
import { availableParallelism, cpus, loadavg, totalmem } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { checkoutFolder, type ProcessHandle, startProcess } from '@keytrail/local';
import { type Constellation, startConstellation } from '@keytrail/local/constellation';
import { measureAttach } from './attach-row.ts';
import { measureAttached } from './attached-rows.ts';
import type { Bench } from './bench.ts';
import { measureClaimRate } from './claim-rate-rows.ts';
import { measureClaims } from './claim-row.ts';
import { measureCreation, measureFanout } from './conversation-rows.ts';
import { measureDevicesQuery } from './devices-row.ts';
import { measureFulfilment } from './fulfilment-rows.ts';
import { measureLink } from './link-row.ts';
import { LoadProgramMissing } from './load-programs.ts';
import type { Measured, Row } from './measurement.ts';
import { writeResults } from './results-file.ts';
import { measureSessionReads } from './session-rows.ts';
import { measureTelemetry } from './telemetry-rows.ts';
import { measureUploads } from './upload-row.ts';

const help = `Usage: make bench              all rows, about nine minutes
       bin/with-node node test/bench/run.ts [--only NAME]... [--json] [--rate N] [--profile SERVICE]

Measures Keytrail on this machine, each row beside a bare program in the same run. docs/benchmarks.md says what the rows are.
Prints a table of what was measured and writes .local/bench.json; progress goes to stderr. Nothing is left running.
With --only, the other rows of the file stay when they were measured at the same revision without changes, and are dropped if not.

  --only NAME        only the rows whose names begin with NAME; again for more
  --json             print what was written to the file instead of the table
  --rate N           key requests per second of the rows fulfilment.online, 50
  --profile SERVICE  write a V8 profile of this service (session, identity-keys, …) to .local/bench/profile; slows it down

Exit codes: 0 all rows measured, 1 a row could not be measured (a wrong answer, say), 2 the servers could not be started,
3 a load program (ghz, vegeta) is missing and Go is not there to build it, 64 wrong use. Without pgbench the rows of claims have no baseline.`;

interface RowGroup {
  readonly rows: readonly string[];
  measure(bench: Bench, rows: readonly string[]): Promise<Measured>;
}

const groups: readonly RowGroup[] = [
  {
    rows: ['session.get-initial.grpc', 'session.get-initial.connect'],
    measure: (bench, rows) =>
      measureSessionReads(
        bench,
        (['grpc', 'connect'] as const).filter((wire) => rows.includes(`session.get-initial.${wire}`)),
      ),
  },
  { rows: ['telemetry.hit.1pct', 'telemetry.hit.100pct'], measure: measureTelemetry },
  { rows: ['identity.claim.hot'], measure: (bench) => measureClaimRate(bench, 'hot') },
  { rows: ['identity.claim.spread'], measure: (bench) => measureClaimRate(bench, 'spread') },
  { rows: ['identity.claim.321'], measure: (bench) => measureClaims(bench, 321) },
  { rows: ['identity.claim.1204'], measure: (bench) => measureClaims(bench, 1204, { warmUps: 8, claims: 30 }) },
  { rows: ['identity.devices.query'], measure: measureDevicesQuery },
  { rows: ['identity.upload.100'], measure: measureUploads },
  { rows: ['fulfilment.online.p50', 'fulfilment.online.p99'], measure: measureFulfilment },
  { rows: ['fulfilment.attach'], measure: measureAttach },
  { rows: ['conversation.fanout.p99'], measure: measureFanout },
  { rows: ['conversation.create'], measure: measureCreation },
  { rows: ['fulfilment.link.200'], measure: measureLink },
  {
    rows: ['presence.attached.1000.memory', 'presence.attached.1000.idle'],
    measure: measureAttached,
  },
];

const only = readArguments();
const { profile: profiled, rate } = values();
const perSecond = Number(rate);
if (!(perSecond >= 1)) {
  process.stderr.write(`--rate takes a number from 1 on\n\n${help}\n`);
  process.exit(64);
}
const progress = (line: string) => process.stderr.write(`${line}\n`);
const folder = join(checkoutFolder, '.local', 'bench');
const databaseConnections = 10;
const startedAt = new Date().toISOString();
const loadBefore = loadavg()[0];
mkdirSync(folder, { recursive: true });
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => process.exit(130));

/** On, so that each claim asks Redis, but never reached. */
const claimLimitsOutOfReach = Object.fromEntries(
  ['CALLER', 'TARGET', 'PAIR'].flatMap((scope) => [
    [`KEYTRAIL_CLAIMS_PER_${scope}`, '1000000000'],
    [`KEYTRAIL_CLAIMS_PER_${scope}_BURST`, '1000000000'],
  ]),
);

let constellation: Constellation;
let sink: ProcessHandle;
try {
  sink = await startProcess({
    name: 'otlp sink',
    args: ['test/bench/otlp-sink.ts'],
    logFile: join(folder, 'otlp-sink.log'),
  });
  const { port } = await sink.waitForLine((line) => line.event === 'listening');
  constellation = await startConstellation({
    name: 'bench',
    own: true,
    traceRatio: 0.01,
    env: {
      KEYTRAIL_DATABASE_CONNECTIONS: String(databaseConnections),
      KEYTRAIL_CALLER_REQUESTS_PER_SECOND: '1000000',
      KEYTRAIL_CALLER_BURST: '1000000',
      KEYTRAIL_CALLER_IN_FLIGHT: '100000',
      ...claimLimitsOutOfReach,
      KEYTRAIL_ATTACHES_PER_SECOND: '0',
      KEYTRAIL_ATTACHES_AT_ONCE: '0',
      KEYTRAIL_OTLP_URL: `http://127.0.0.1:${port}`,
    },
    ...(profiled !== undefined && {
      serviceEnv: { [profiled]: { NODE_OPTIONS: `--cpu-prof --cpu-prof-dir=${join(folder, 'profile')}` } },
    }),
    progress,
  });
} catch (error) {
  progress(error instanceof Error ? error.message : String(error));
  process.exit(2);
}

const rows: Row[] = [];
const details: Record<string, unknown> = {};
let failure = 0;
for (const group of groups) {
  const wanted = wantedOf(group);
  if (wanted.length === 0) continue;
  try {
    const measured = await group.measure({ constellation, databaseConnections, perSecond, folder, progress }, wanted);
    rows.push(...measured.rows.filter(({ name }) => wanted.includes(name)));
    Object.assign(details, measured.details);
    for (const [name, why] of Object.entries(measured.refused ?? {}).filter(([row]) => wanted.includes(row))) {
      progress(`${name}: ${why}`);
      failure ||= 1;
    }
  } catch (error) {
    progress(`${wanted.join(', ')}: ${error instanceof Error ? (error.stack ?? error.message) : error}`);
    failure = error instanceof LoadProgramMissing ? 3 : failure || 1;
  }
}
const versions = {
  node: process.versions.node,
  postgres: constellation.postgres.version,
  redis: constellation.redis.version,
  nats: constellation.nats.version,
  revision: gitRevision(),
};
await constellation.stop();
await sink.stop();

const machine = {
  cpus: availableParallelism(),
  model: cpus()[0]?.model.trim() ?? 'unknown',
  memory: `${Math.round(totalmem() / 2 ** 30)} GiB`,
  /** Runnable processes before the run: more than 0.5 means that something else was using the machine. */
  loadBefore: Number(loadBefore?.toFixed(2)),
};
const result = writeResults(
  join(checkoutFolder, '.local', 'bench.json'),
  { machine, versions, startedAt, rows, details },
  groups.flatMap((group) => wantedOf(group)),
  progress,
);
process.stdout.write(values().json ? `${JSON.stringify(result, undefined, 2)}\n` : `${table(rows)}\n`);
process.exit(failure);

function values() {
  return parseArgs({
    options: {
      only: { type: 'string', multiple: true },
      profile: { type: 'string' },
      rate: { type: 'string', default: '50' },
      json: { type: 'boolean', default: false },
      help: { type: 'boolean', short: 'h', default: false },
    },
  }).values;
}

function readArguments(): string[] | undefined {
  let parsed: ReturnType<typeof values>;
  try {
    parsed = values();
  } catch (error) {
    process.stderr.write(`${(error as Error).message}\n\n${help}\n`);
    process.exit(64);
  }
  if (parsed.help) {
    process.stdout.write(`${help}\n`);
    process.exit(0);
  }
  const names = groups.flatMap((group) => group.rows);
  const unknown = parsed.only?.find((prefix) => !names.some((name) => name.startsWith(prefix)));
  if (unknown !== undefined) {
    process.stderr.write(`there is no row ${unknown}; there are: ${names.join(', ')}\n`);
    process.exit(64);
  }
  return parsed.only;
}

function wantedOf({ rows: names }: RowGroup): string[] {
  return names.filter((name) => only === undefined || only.some((prefix) => name.startsWith(prefix)));
}

function gitRevision(): string {
  try {
    const git = (...args: string[]) => execFileSync('git', args, { cwd: checkoutFolder, encoding: 'utf8' }).trim();
    const changed = git('status', '--porcelain', '--untracked-files=no') === '' ? '' : ' with changes';
    return `${git('rev-parse', 'HEAD')}${changed}`;
  } catch {
    return 'unknown';
  }
}

function table(of: readonly Row[]): string {
  const cells = [
    ['', 'value', 'baseline', 'ratio', 'unit'],
    ...of.map(({ name, value, baseline, ratio, unit }) => [
      name,
      String(value),
      baseline === null ? '–' : String(baseline),
      ratio === null ? '–' : String(ratio),
      unit,
    ]),
  ];
  const widths = [0, 1, 2, 3, 4].map((column) => Math.max(...cells.map((line) => (line[column] as string).length)));
  return cells
    .map((line) =>
      line
        .map((cell, column) =>
          column === 0 || column === 4
            ? cell.padEnd(widths[column] as number)
            : cell.padStart(widths[column] as number),
        )
        .join('  ')
        .trimEnd(),
    )
    .join('\n');
}
