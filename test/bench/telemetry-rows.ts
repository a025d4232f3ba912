import { join } from 'node:path';
import { createClient } from '@connectrpc/connect';
import { operatorScope } from '@keytrail/auth';
import { DiagnosticsService } from '@keytrail/contracts';
import { createGrpcTransport } from '@keytrail/rpc';
import pg from 'pg';
import type { Bench } from './bench.ts';
import { type LoadCaller, loadByGrpc, type Round } from './load.ts';
import { ensureLoadProgram } from './load-programs.ts';
import type { Measured } from './measurement.ts';
import { seedSessions } from './seed-sessions.ts';
import { type Spans, telemetryVerdict } from './telemetry-verdict.ts';

const inFlight = 64;
const warmUpSeconds = 3;
const roundSeconds = 4;
const rounds = 5;
/** As many ghz as callers: more of them would take the processor from the server. */
const callersAtOnce = 4;

/** What the same process does with each: nothing recorded at all, one hit in a hundred exported, every hit exported. */
const modes = {
  off: { KEYTRAIL_TELEMETRY: 'off', KEYTRAIL_TRACE_RATIO: '0' },
  '1pct': { KEYTRAIL_TELEMETRY: 'on', KEYTRAIL_TRACE_RATIO: '0.01' },
  '100pct': { KEYTRAIL_TELEMETRY: 'on', KEYTRAIL_TRACE_RATIO: '1' },
} as const;
type Mode = keyof typeof modes;
const names = Object.keys(modes) as Mode[];

/** Since the start of the process. What waits is sent before it answers. */
async function spansOf(address: string, token: string): Promise<Spans> {
  const transport = createGrpcTransport({ target: address, authorization: () => `Bearer ${token}` });
  try {
    const { results } = await createClient(DiagnosticsService, transport).runChecks({ codes: ['TELEMETRY'] });
    const evidence = results[0]?.evidence ?? {};
    const [exported, lost] = [Number(evidence.spansTaken), Number(evidence.spansLost)];
    if (Number.isNaN(exported + lost)) throw new Error('the process did not say what became of its spans');
    return { exported, lost };
  } finally {
    transport.close();
  }
}

const none: Spans = { exported: 0, lost: 0 };

/**
 * Hits of one session process, with telemetry at 1 % and at 100 % against the same process without any. It is started anew for each round,
 * and the three take turns, so that all see the same machine.
 */
export async function measureTelemetry({ constellation, folder, progress }: Bench): Promise<Measured> {
  const program = await ensureLoadProgram('ghz', progress);
  const sql = new pg.Client({ connectionString: constellation.databaseUrls.session });
  await sql.connect();
  const seeded = await seedSessions(sql).finally(() => sql.end());
  const [session] = constellation.of('session');
  if (!session) throw new Error('there is no session service');
  const tokens = await Promise.all(seeded.callers.map((caller) => constellation.issuer.token(caller)));
  const callers: LoadCaller[] = seeded.callers
    .map((_, n) => ({ headers: { authorization: `Bearer ${tokens[n]}` }, reads: seeded.sessions }))
    .slice(0, callersAtOnce);

  const operator = { userId: 'bench', deviceId: 'console', scopes: [operatorScope] };
  const token = await constellation.issuer.token(operator);
  const spansNow = (mode: Mode) => (mode === 'off' ? Promise.resolve(none) : spansOf(session.grpcTarget, token));

  const found: Record<Mode, Round[]> = { off: [], '1pct': [], '100pct': [] };
  const spans: Record<Mode, Spans[]> = { off: [], '1pct': [], '100pct': [] };
  try {
    for (let n = 1; n <= rounds; n += 1) {
      for (const mode of names) {
        await session.process.restart({ env: modes[mode] });
        const target = { pid: session.process.pid, address: session.grpcTarget, callers };
        const options = { program, folder: join(folder, 'load'), inFlight };
        await loadByGrpc(target, { ...options, seconds: warmUpSeconds });
        const before = await spansNow(mode);
        found[mode].push(await loadByGrpc(target, { ...options, seconds: roundSeconds }));
        const after = await spansNow(mode);
        spans[mode].push({ exported: after.exported - before.exported, lost: after.lost - before.lost });
      }
      const speeds = names.map((mode) => `${mode} ${Math.round(found[mode].at(-1)?.requestsPerSecond ?? 0)}`);
      progress(`telemetry.hit: round ${n} of ${rounds}, requests/s: ${speeds.join(', ')}`);
    }
  } finally {
    await session.process.restart({ env: modes['1pct'] });
  }
  return telemetryVerdict({ found, spans });
}
