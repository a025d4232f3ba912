import { join } from 'node:path';
import { create, toBinary } from '@bufbuild/protobuf';
import { createClient, type Transport } from '@connectrpc/connect';
import {
  type GetInitialSessionRequest,
  GetInitialSessionRequestSchema,
  GetInitialSessionResponseSchema,
  SessionService,
} from '@keytrail/contracts';
import { startProcess } from '@keytrail/local';
import { createGrpcTransport } from '@keytrail/rpc';
import pg from 'pg';
import type { Bench } from './bench.ts';
import { type LoadCaller, type LoadTarget, loadByConnect, loadByGrpc, type Round } from './load.ts';
import { ensureLoadProgram } from './load-programs.ts';
import { type Measured, median, rounded, rowOf, WrongAnswers } from './measurement.ts';
import { type SeededSessions, seedSessions } from './seed-sessions.ts';

const inFlight = 64;
const warmUpSeconds = 3;
const roundSeconds = 4;
const rounds = 7;
/** As many ghz as callers: more of them would take the processor from the servers. */
const grpcCallers = 4;

/** The hit with the whole chain on, against a bare server over the same rows; rounds alternate, so that both see the same machine. */
export async function measureSessionReads(bench: Bench, wires: readonly ('grpc' | 'connect')[]): Promise<Measured> {
  const programs = {
    grpc: wires.includes('grpc') ? await ensureLoadProgram('ghz', bench.progress) : '',
    connect: wires.includes('connect') ? await ensureLoadProgram('vegeta', bench.progress) : '',
  };
  const { constellation, progress } = bench;
  const databaseUrl = constellation.databaseUrls.session;
  progress('seeding sessions');
  const sql = new pg.Client({ connectionString: databaseUrl });
  await sql.connect();
  const seeded = await seedSessions(sql).finally(() => sql.end());

  await using bare = await startProcess({
    name: 'bare server',
    args: ['test/bench/bare-server.ts'],
    logFile: join(bench.folder, 'bare-server.log'),
    env: { KEYTRAIL_DATABASE_URL: databaseUrl, KEYTRAIL_DATABASE_CONNECTIONS: String(bench.databaseConnections) },
  });
  const { grpcPort, webPort } = await bare.waitForLine((line) => line.event === 'listening');
  const [session] = constellation.of('session');
  if (!session) throw new Error('there is no session service');
  const tokens = await Promise.all(seeded.callers.map((caller) => constellation.issuer.token(caller)));
  const oursCallers = callersOf(seeded, (_, n) => ({ authorization: `Bearer ${tokens[n]}` }));
  const bareCallers = callersOf(seeded, ({ userId, deviceId }) => ({ user: userId, device: deviceId }));
  await checkSameBytes(session.grpcTarget, `127.0.0.1:${grpcPort}`, oursCallers, bareCallers);

  const measured: { rows: Measured['rows'][number][]; details: Record<string, unknown> } = { rows: [], details: {} };
  for (const wire of wires) {
    const name = `session.get-initial.${wire}`;
    const few = (callers: LoadCaller[]) => (wire === 'grpc' ? callers.slice(0, grpcCallers) : callers);
    const bareTarget: LoadTarget = {
      pid: bare.pid,
      address: wire === 'grpc' ? `127.0.0.1:${grpcPort}` : `http://127.0.0.1:${webPort}`,
      callers: few(bareCallers),
    };
    const oursTarget: LoadTarget = {
      pid: session.process.pid,
      address: wire === 'grpc' ? session.grpcTarget : session.webUrl,
      callers: few(oursCallers),
    };
    const options = { program: programs[wire], folder: join(bench.folder, 'load'), inFlight };
    const measure = (target: LoadTarget, seconds: number) =>
      wire === 'grpc'
        ? loadByGrpc(target, { ...options, seconds })
        : loadByConnect(target, encode, { ...options, seconds });

    progress(`${name}: warming up`);
    await measure(bareTarget, warmUpSeconds);
    await measure(oursTarget, warmUpSeconds);
    const found: { bare: Round[]; ours: Round[] } = { bare: [], ours: [] };
    for (let n = 1; n <= rounds; n += 1) {
      found.bare.push(await measure(bareTarget, roundSeconds));
      found.ours.push(await measure(oursTarget, roundSeconds));
      progress(`${name}: round ${n} of ${rounds}, bare ${speed(found.bare)}, ours ${speed(found.ours)} requests/s`);
    }
    const perSecond = (each: readonly Round[]) => median(each.map((one) => one.requestsPerSecond));
    measured.rows.push(rowOf(name, 'requests/s', perSecond(found.ours), perSecond(found.bare)));
    const processorTime = (each: readonly Round[]) => median(each.map((one) => one.serverMicrosecondsEach));
    measured.details[name] = {
      // On a busy machine this varies less than requests per second.
      ratioByProcessorTime: rounded(processorTime(found.bare) / processorTime(found.ours)),
      inFlight,
      roundSeconds,
      bare: found.bare.map(inShort),
      ours: found.ours.map(inShort),
    };
  }
  return measured;
}

function callersOf(
  { callers, sessions }: SeededSessions,
  headers: (caller: SeededSessions['callers'][number], n: number) => Readonly<Record<string, string>>,
): LoadCaller[] {
  return callers.map((caller, n) => ({ headers: headers(caller, n), reads: sessions }));
}

function encode(read: LoadCaller['reads'][number]): Uint8Array {
  return toBinary(GetInitialSessionRequestSchema, create(GetInitialSessionRequestSchema, read));
}

/** The comparison is fair only if both do the same. */
async function checkSameBytes(
  oursTarget: string,
  bareTarget: string,
  ours: LoadCaller[],
  bare: LoadCaller[],
): Promise<void> {
  const answers = await Promise.all(
    [
      { target: oursTarget, caller: ours[0] as LoadCaller },
      { target: bareTarget, caller: bare[0] as LoadCaller },
    ].map(async ({ target, caller }) => {
      const transport = createGrpcTransport({ target });
      try {
        return await readOne(transport, caller);
      } finally {
        transport.close();
      }
    }),
  );
  if (answers[0] !== answers[1]) throw new WrongAnswers('the bare server and the service answer differently');
}

async function readOne(transport: Transport, { headers, reads }: LoadCaller): Promise<string> {
  const read = reads[0] as Pick<GetInitialSessionRequest, 'conversationId' | 'sessionId'>;
  const message = await createClient(SessionService, transport).getInitialSession(read, { headers });
  return Buffer.from(toBinary(GetInitialSessionResponseSchema, message)).toString('hex');
}

function speed(found: readonly Round[]): number {
  return Math.round(found.at(-1)?.requestsPerSecond ?? 0);
}

function inShort(round: Round): Record<string, number> {
  return Object.fromEntries(Object.entries(round).map(([name, value]) => [name, rounded(value)]));
}
