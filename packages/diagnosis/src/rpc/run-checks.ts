import { CheckStatus, DiagnosticsService } from '@keytrail/contracts';
import { type Rpc, unary } from '@keytrail/rpc';
import { describeError } from '@keytrail/telemetry';
import { checkCatalogue } from '../catalogue.ts';
import type { DatabaseCheck, Outcome, Probe, Status } from '../check.ts';
import type { DiagnosticsParts } from '../parts.ts';
import { processIdentity } from '../process-identity.ts';

const statuses: Record<Status, CheckStatus> = {
  ok: CheckStatus.OK,
  warn: CheckStatus.WARN,
  fail: CheckStatus.FAIL,
  skip: CheckStatus.SKIP,
  unknown: CheckStatus.UNKNOWN,
};
const order = new Map<string, number>(checkCatalogue.map(({ code }, place) => [code, place]));

/** Runs what this process has of the catalogue, one after the other, so that a diagnosis is no load. */
export function runChecks(parts: DiagnosticsParts): Rpc {
  const checks = [...(parts.probes ?? []), ...(parts.databaseChecks ?? [])].sort(
    (a, b) => (order.get(a.code) ?? 0) - (order.get(b.code) ?? 0),
  );
  return unary(DiagnosticsService.method.runChecks, {
    allow: ['operator'],
    async handle({ codes }, call) {
      const results = [];
      for (const check of checks) {
        if (codes.length > 0 && !codes.includes(check.code)) continue;
        const from = performance.now();
        const { status, summary, evidence = {}, hint = '' } = await outcomeOf(parts, check, call.signal);
        results.push({
          code: check.code,
          status: statuses[status],
          summary,
          evidence: Object.fromEntries(Object.entries(evidence).map(([name, value]) => [name, String(value)])),
          hint,
          sql: 'statement' in check ? check.statement.text : '',
          durationMs: performance.now() - from,
        });
      }
      return { results, process: processIdentity(parts.telemetry.build) };
    },
  });
}

async function outcomeOf(
  { database }: DiagnosticsParts,
  check: Probe | DatabaseCheck,
  signal: AbortSignal,
): Promise<Outcome> {
  try {
    if ('run' in check) return await check.run(signal);
    if (!database) return { status: 'skip', summary: 'this service has no database' };
    return check.judge(await database.db.query(check.statement, []));
  } catch (error) {
    const { type, message } = describeError(error);
    return { status: 'unknown', summary: `it could not be found out: ${message}`, evidence: { error: type } };
  }
}
