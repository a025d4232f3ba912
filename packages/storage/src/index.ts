export { auditLogKeptAtLeastMs, auditSettings, purgeAuditLog } from './audit-log.ts';
export {
  beginChanges,
  ChangeCursorMalformed,
  type ChangeFeed,
  type ChangeFeedRow,
  type ChangePage,
  type ChangePosition,
  changedXidMigration,
  changeFeedColumns,
  changeFeedOf,
  changesAfter,
  endChanges,
  noteChangeMigration,
  readChangeFeed,
} from './change-cursor.ts';
export {
  type Database,
  type DatabaseOptions,
  type DedicatedConnection,
  openDatabase,
  type Queryable,
  type Transaction,
} from './database.ts';
export {
  isCheckViolation,
  isConnectionFailure,
  isDatabaseError,
  isForeignKeyViolation,
  isLockTimeout,
  isNotNullViolation,
  isSerializationFailure,
  isStatementTimeout,
  isUniqueViolation,
  TransactionAborted,
} from './errors.ts';
export { type MarkAppliedOptions, MarkRefused, markApplied, saysAppliedAlready } from './mark-applied.ts';
export { type MigrationState, migrationNames } from './migration-history.ts';
export {
  type MigrateOptions,
  type MigrationOptions,
  MigrationsRefused,
  migrateDatabase,
  migrationReadiness,
  migrationState,
} from './migrations.ts';
export {
  onceByRequestId,
  purgeRequestIds,
  type RequestIdentity,
  RequestIdReused,
  requestIdRetentionMs,
  requestIdsMigration,
} from './request-ids.ts';
export {
  type Evidence,
  type FenceRow,
  judge,
  type Seen,
  type TimelineSwitch,
  type Verdict,
} from './restore-fence/judge.ts';
export { restoreFenceMigration } from './restore-fence/migration.ts';
export { OutsideMovedOn, type OutsideRecord, type OutsideState, type OutsideStore } from './restore-fence/outside.ts';
export {
  createRestoreFence,
  type FencePass,
  type RestoreFence,
  type RestoreFenceOptions,
} from './restore-fence/restore-fence.ts';
export { acceptRestores, type DatabaseRestoreRow, listRestores } from './restore-fence/restores.ts';
export { readFence } from './restore-fence/rows.ts';
export { MigrationFailed } from './schema-engine.ts';
export type { SchemaGate } from './schema-gate.ts';
export { type SchemaReadiness, schemaFloorMigration, schemaReadiness } from './schema-readiness.ts';
export { createServiceDatabase, type ServiceDatabase } from './service-database.ts';
export { databaseSettings, fenceSettings } from './settings.ts';
export { type Statement, statement } from './statement.ts';
