import type { SchemaReadiness } from '@keytrail/storage';
import { DatabaseAway } from '@keytrail/telemetry';
import type { Outcome, Probe } from '../check.ts';

/** Whether database and code have the same migrations, both ways. */
export function probeMigrations(compare: () => Promise<SchemaReadiness>): Probe {
  return {
    code: 'MIGRATIONS',
    async run() {
      try {
        return judgeMigrations(await compare());
      } catch (error) {
        if (!(error instanceof DatabaseAway)) throw error;
        return {
          status: 'unknown',
          summary: `the migrations of the database cannot be read: ${error.message}`,
          hint: 'see DATABASE',
        };
      }
    },
  };
}

export function judgeMigrations({ ready, reason, why, state, floor, newestInDatabase }: SchemaReadiness): Outcome {
  const evidence = {
    state: state.state,
    newestInDatabase,
    ...(floor && { floor }),
    ...named('missing', state.missing),
    ...named('unknown', state.unknown),
    ...named('edited', state.edited),
    ...named('failed', state.failed),
  };
  if (ready && why === undefined)
    return { status: 'ok', summary: `database and code both end with ${newestInDatabase}`, evidence };
  const summary = why ?? state.state;
  if (ready)
    return {
      status: 'warn',
      summary,
      evidence,
      hint: 'this build is older than its database, and still within the floor: roll it forward',
    };
  return { status: 'fail', summary, evidence, hint: hintOf(reason, state, newestInDatabase) };
}

function hintOf(
  reason: SchemaReadiness['reason'],
  { missing, edited, failed }: SchemaReadiness['state'],
  newestInDatabase: string,
): string {
  if (reason === 'BUILD_BEHIND')
    return 'roll forward to a build that knows these migrations; this one serves nothing until then';
  if (edited.length > 0) return 'somebody changed a migration that was applied already: restore its file';
  if (failed.length > 0)
    return 'a migration is under way, or failed: while a deployment is at work wait; otherwise keytrail migrate deploy --retry-failed, for nothing of it remains but its row in _prisma_migrations, which says why';
  if (missing.some((name) => name < newestInDatabase))
    return 'keytrail migrate deploy; when that says that something already exists, its row was lost: keytrail migrate resolve --applied';
  return 'keytrail migrate deploy; the process recovers by itself';
}

function named(kind: string, names: readonly string[]): Record<string, string> {
  return names.length > 0 ? { [kind]: names.join(', ') } : {};
}
