import type { ServiceName } from '@keytrail/auth';
import type { EventBus } from '@keytrail/events';
import type { Readiness } from '@keytrail/rpc';
import type { Database, RestoreFence, SchemaReadiness } from '@keytrail/storage';
import type { Telemetry } from '@keytrail/telemetry';
import type { RecordAudit } from './audited.ts';
import type { DatabaseCheck, Probe } from './check.ts';

/** What a process tells of itself, and what it is told by. */
export interface DiagnosticsParts {
  readonly service: ServiceName;
  readonly telemetry: Telemetry;
  readonly bus: EventBus;
  readonly readiness: () => Promise<Readiness>;
  /** Absent in services without a database. */
  readonly database?: { readonly db: Database; readonly migrationsFolder: string; readonly fence?: RestoreFence };
  /** Writes to the audit log, where there is one: what operators looked at and did here. */
  readonly audit?: RecordAudit<{ readonly action: string; readonly note: string }>;
  /** Of this service's own tables. */
  readonly databaseChecks?: readonly DatabaseCheck[];
  /** Of this service's own affairs that are not rows. */
  readonly probes?: readonly Probe[];
}

/** The migrations of this process's code against those of its database; undefined without one. Rejects while that cannot be asked. */
export function compareSchema({ database }: DiagnosticsParts): Promise<SchemaReadiness> | undefined {
  return database?.db.schema.check();
}
