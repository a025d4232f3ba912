import { DatabaseAway, DatabaseUnfit } from '@keytrail/telemetry';
import { readMigrations } from './migration-history.ts';
import { judgeSchema, type SchemaAsker, type SchemaReadiness } from './schema-readiness.ts';

/** Whether a database fits the build, as it was found last. While it does not, nothing is asked of it or written to it. */
export interface SchemaGate {
  /** Why it is closed; undefined while it is open. It begins closed, by DatabaseAway, until it was asked. */
  readonly closed: DatabaseUnfit | DatabaseAway | undefined;
  /** Asks now; askers at the same time share one answer. Throws when the database cannot be asked, and then stays as it was. */
  check(): Promise<SchemaReadiness>;
  /** Calls back when it opens or closes; returns how to stop that. */
  onChange(run: () => void): () => void;
}

/** Of a database that nobody compares. */
export const openGate: SchemaGate = {
  closed: undefined,
  check: async () => ({
    ready: true,
    state: { state: 'current', missing: [], unknown: [], edited: [], failed: [] },
    newestInDatabase: '',
  }),
  onChange: () => () => {},
};

/** The migrations are those of the code as it was loaded: what lies on disk later is of another build. */
export function createSchemaGate(ask: SchemaAsker, migrationsFolder: string): SchemaGate {
  const local = readMigrations(migrationsFolder);
  const listeners = new Set<() => void>();
  let closed: SchemaGate['closed'] = new DatabaseAway(new Error('it was not asked yet which migrations it has'));
  let asking: Promise<SchemaReadiness> | undefined;

  function settle(found: SchemaReadiness): void {
    const before = closed;
    closed = found.ready ? undefined : unfit(found, before);
    if (closed !== before) for (const run of [...listeners]) run();
  }

  async function askNow(): Promise<SchemaReadiness> {
    const found = await judgeSchema(ask, local);
    settle(found);
    return found;
  }

  return {
    get closed() {
      return closed;
    },
    check() {
      asking ??= askNow().finally(() => {
        asking = undefined;
      });
      return asking;
    },
    onChange(run) {
      listeners.add(run);
      return () => listeners.delete(run);
    },
  };
}

function unfit({ reason, why, metadata }: SchemaReadiness, before: SchemaGate['closed']): DatabaseUnfit {
  const found = new DatabaseUnfit(reason ?? 'SCHEMA_BEHIND', why ?? '', metadata ?? {});
  return before instanceof DatabaseUnfit && before.message === found.message ? before : found;
}
