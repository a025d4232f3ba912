import { CheckStatus, DiagnosticsService } from '@keytrail/contracts';
import { type Rpc, unary } from '@keytrail/rpc';
import { describeError } from '@keytrail/telemetry';
import { checkCatalogue, storeOf } from '../catalogue.ts';
import type { DatabaseCheck, Outcome, Probe, Status } from '../check.ts';
import type { DiagnosticsParts } from '../parts.ts';
import { processProbes } from '../probes/index.ts';
import { processIdentity } from '../process-identity.ts';
import { runDatabaseCheck } from '../run-database-check.ts';

const statuses: Record<Status, CheckStatus> = {
  ok: CheckStatus.OK,
  warn: CheckStatus.WARN,
  fail: CheckStatus.FAIL,
  skip: CheckStatus.SKIP,
  unknown: CheckStatus.UNKNOWN,
};
const order = new Map<string, number>(checkCatalogue.map(({ code }, place) => [code, place]));
/** One check that hangs does not take the others with it. */
const longestCheckMs = 4_000;

/** Runs what this process has of the catalogue, one after the other, so that a diagnosis is no load. */
export function runChecks(parts: DiagnosticsParts): Rpc {
  const checks = [...processProbes(parts), ...(parts.probes ?? []), ...(parts.databaseChecks ?? [])].sort(
    (a, b) => (order.get(a.code) ?? 0) - (order.get(b.code) ?? 0),
  );
  return unary(DiagnosticsService.method.runChecks, {
    allow: ['operator'],
    whileClosed: true,
    async handle({ codes, subjects: asked }, call) {
      const results = [];
      for (const check of checks) {
        if (codes.length > 0 && !codes.includes(check.code)) continue;
        const from = performance.now();
        const {
          status,
          summary,
          evidence = {},
          hint = '',
          subjects = [],
        } = await outcomeOf(parts, check, asked, call.signal);
        results.push({
          code: check.code,
          status: statuses[status],
          summary,
          evidence: Object.fromEntries(Object.entries(evidence).map(([name, value]) => [name, String(value)])),
          hint,
          sql: 'statement' in check ? check.statement.text : '',
          durationMs: performance.now() - from,
          subjects: [...subjects],
        });
      }
      return { results, process: processIdentity(parts.telemetry) };
    },
  });
}

async function outcomeOf(
  { database }: DiagnosticsParts,
  check: Probe | DatabaseCheck,
  subjects: readonly string[],
  callSignal: AbortSignal,
): Promise<Outcome> {
  const ending = AbortSignal.timeout(longestCheckMs);
  const late = new Promise<never>((_, reject) =>
    ending.addEventListener('abort', () => reject(new Error(`no answer within ${longestCheckMs} ms`)), { once: true }),
  );
  const run = async (): Promise<Outcome> => {
    if ('run' in check) return check.run(AbortSignal.any([callSignal, ending]));
    if (!database) return { status: 'skip', summary: 'this service has no database' };
    return runDatabaseCheck(database.db, check, subjects);
  };
  try {
    return await Promise.race([run(), late]);
  } catch (error) {
    const { type, message } = describeError(error);
    const store = storeOf(check.code);
    return {
      status: 'unknown',
      summary: `it could not be found out: ${message}`,
      // What every error is called says nothing.
      ...(type !== 'Error' && { evidence: { error: type } }),
      hint: store
        ? `see ${store}, which it asks`
        : 'look again; when it stays so, the log of this process and what it stands on',
    };
  }
}
