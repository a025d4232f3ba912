import { spawn } from 'node:child_process';
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { create, type DescFile, toBinary } from '@bufbuild/protobuf';
import { type FileDescriptorProto, FileDescriptorSetSchema } from '@bufbuild/protobuf/wkt';
import { SessionService } from '@keytrail/contracts';
import { WrongAnswers } from './measurement.ts';
import { processorSeconds, processorSecondsOfEndedPrograms } from './processor-time.ts';

/** Who asks, and for which sessions. */
export interface LoadCaller {
  readonly headers: Readonly<Record<string, string>>;
  readonly reads: readonly { readonly conversationId: string; readonly sessionId: string }[];
}

/** One round against one server. Every answer was OK, or it would have thrown WrongAnswers. */
export interface Round {
  readonly requestsPerSecond: number;
  readonly p50Ms: number;
  readonly p99Ms: number;
  /** Of one core: that of the server that answered, and that of the program that asked. */
  readonly serverCores: number;
  readonly loadCores: number;
  readonly serverMicrosecondsEach: number;
}

export interface LoadTarget {
  readonly pid: number;
  /** `host:port` for gRPC, a base URL for HTTP. */
  readonly address: string;
  readonly callers: readonly LoadCaller[];
}

export interface LoadOptions {
  readonly program: string;
  readonly folder: string;
  readonly seconds: number;
  readonly inFlight: number;
}

const path = `${SessionService.typeName}/GetInitialSession`;

/** What one load program counted. */
export interface Counted {
  readonly answered: number;
  readonly seconds: number;
  readonly p50Ms: number;
  readonly p99Ms: number;
}

/** Measures the processor time around a load; `pid` is the server's. */
export async function round({ pid }: { readonly pid: number }, load: () => Promise<Counted[]>): Promise<Round> {
  const before = { server: processorSeconds(pid), load: processorSecondsOfEndedPrograms() };
  const counted = await load();
  const serverSeconds = processorSeconds(pid) - before.server;
  const loadSeconds = processorSecondsOfEndedPrograms() - before.load;
  const answered = counted.reduce((sum, each) => sum + each.answered, 0);
  const seconds = Math.max(...counted.map((each) => each.seconds));
  return {
    requestsPerSecond: counted.reduce((sum, each) => sum + each.answered / each.seconds, 0),
    p50Ms: Math.max(...counted.map((each) => each.p50Ms)),
    p99Ms: Math.max(...counted.map((each) => each.p99Ms)),
    serverCores: serverSeconds / seconds,
    loadCores: loadSeconds / seconds,
    serverMicrosecondsEach: (serverSeconds * 1e6) / answered,
  };
}

/** One ghz for each caller, because ghz sends the same metadata with each call. */
export function loadByGrpc(server: LoadTarget, options: LoadOptions): Promise<Round> {
  mkdirSync(options.folder, { recursive: true });
  const contracts = join(options.folder, 'contracts.binpb');
  writeFileSync(contracts, descriptorSet(SessionService.file));
  const each = Math.max(1, Math.floor(options.inFlight / server.callers.length));
  return round(server, () =>
    Promise.all(
      server.callers.map(async ({ headers, reads }, number) => {
        const data = join(options.folder, `ghz-${number}.json`);
        writeFileSync(data, JSON.stringify(reads));
        const report = JSON.parse(
          await run(options.program, [
            '--insecure',
            `--protoset=${contracts}`,
            `--call=${path}`,
            `--data-file=${data}`,
            `--metadata=${JSON.stringify(headers)}`,
            `--concurrency=${each}`,
            '--connections=1',
            `--duration=${options.seconds}s`,
            '--duration-stop=wait',
            '--timeout=10s',
            '--disable-template-functions',
            '--disable-template-data',
            '--format=json',
            server.address,
          ]),
        ) as GhzReport;
        const { OK: ok = 0, ...others } = report.statusCodeDistribution ?? {};
        if (Object.keys(others).length > 0 || ok === 0 || ok !== report.count)
          throw new WrongAnswers(`not every answer was OK: ${JSON.stringify(report.statusCodeDistribution)}`);
        return { answered: ok, seconds: report.total / 1e9, ...latencies(report) };
      }),
    ),
  );
}

interface GhzReport {
  readonly count: number;
  /** Nanoseconds. */
  readonly total: number;
  readonly statusCodeDistribution?: Readonly<Record<string, number>>;
  readonly latencyDistribution?: readonly { readonly percentage: number; readonly latency: number }[];
}

function latencies({ latencyDistribution = [] }: GhzReport) {
  const at = (percentage: number) =>
    (latencyDistribution.find((each) => each.percentage === percentage)?.latency ?? Number.NaN) / 1e6;
  return { p50Ms: at(50), p99Ms: at(99) };
}

/** Connect over HTTP/1.1: `POST` of the message in Protobuf, as @connectrpc/connect-web sends it with `useBinaryFormat`. */
export function loadByConnect(
  server: LoadTarget,
  encode: (read: LoadCaller['reads'][number]) => Uint8Array,
  options: LoadOptions,
): Promise<Round> {
  mkdirSync(options.folder, { recursive: true });
  const targets = join(options.folder, 'targets.json');
  const results = join(options.folder, 'results.bin');
  const lines: string[] = [];
  const longest = Math.max(...server.callers.map(({ reads }) => reads.length));
  for (let n = 0; n < longest; n += 1) {
    for (const { headers, reads } of server.callers) {
      const read = reads[n % reads.length] as LoadCaller['reads'][number];
      const header = Object.fromEntries(
        Object.entries({ 'Content-Type': 'application/proto', ...headers }).map(([name, value]) => [name, [value]]),
      );
      const body = Buffer.from(encode(read)).toString('base64');
      lines.push(JSON.stringify({ method: 'POST', url: `${server.address}/${path}`, header, body }));
    }
  }
  writeFileSync(targets, `${lines.join('\n')}\n`);
  return round(server, async () => {
    const { program, inFlight, seconds } = options;
    await run(program, [
      'attack',
      '-format=json',
      `-targets=${targets}`,
      '-rate=0',
      `-workers=${inFlight}`,
      `-max-workers=${inFlight}`,
      `-connections=${inFlight}`,
      `-duration=${seconds}s`,
      '-timeout=10s',
      '-max-body=0',
      `-output=${results}`,
    ]);
    const report = JSON.parse(await run(program, ['report', '-type=json', results])) as VegetaReport;
    const { 200: ok = 0, ...others } = report.status_codes;
    if (Object.keys(others).length > 0 || ok !== report.requests || report.errors.length > 0)
      throw new WrongAnswers(
        `not every answer was 200: ${JSON.stringify(report.status_codes)} ${report.errors.join(', ')}`,
      );
    const took = (report.duration + report.wait) / 1e9;
    return [
      { answered: ok, seconds: took, p50Ms: report.latencies['50th'] / 1e6, p99Ms: report.latencies['99th'] / 1e6 },
    ];
  });
}

interface VegetaReport {
  readonly requests: number;
  /** Nanoseconds, as all of these. */
  readonly duration: number;
  readonly wait: number;
  readonly latencies: { readonly '50th': number; readonly '99th': number };
  readonly status_codes: Readonly<Record<string, number>>;
  readonly errors: readonly string[];
}

/** Runs a load program to its end; its output. Throws WrongAnswers when it fails. */
export async function run(program: string, args: string[]): Promise<string> {
  const child = spawn(program, args, { stdio: ['ignore', 'pipe', 'pipe'] });
  let out = '';
  let said = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    out += text;
  });
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    said += text;
  });
  const end = () => child.kill('SIGKILL');
  process.once('exit', end);
  const code = await new Promise<number | null>((resolve, reject) => {
    child.once('error', reject);
    child.once('close', resolve);
  });
  process.off('exit', end);
  if (code !== 0) throw new WrongAnswers(`${program} ended with ${code}: ${said.slice(-1000)}`);
  return out;
}

function descriptorSet(file: DescFile): Uint8Array {
  const files = new Map<string, FileDescriptorProto>();
  const add = (each: DescFile) => {
    for (const dependency of each.dependencies) add(dependency);
    files.set(each.name, each.proto);
  };
  add(file);
  return toBinary(FileDescriptorSetSchema, create(FileDescriptorSetSchema, { file: [...files.values()] }));
}
