import type { Database } from '@keytrail/storage';
import type { Probe } from '../check.ts';
import { compareSchema, type DiagnosticsParts } from '../parts.ts';
import { probeBuildRunning } from './build-running.ts';
import { probeClocks } from './clocks.ts';
import { probeConsumers } from './consumers.ts';
import { probeDatabase } from './database.ts';
import { probeDatabaseRestored } from './database-restored.ts';
import { probeMigrations } from './migrations.ts';
import { probeNats } from './nats.ts';
import { probeSourcesOnDisk } from './sources-on-disk.ts';
import { probeStreams } from './streams.ts';
import { probeTelemetry } from './telemetry.ts';

function probesOfDatabase(parts: DiagnosticsParts, db: Database): Probe[] {
  const compare = () => compareSchema(parts) ?? Promise.reject(new Error('there is no database'));
  const restored = probeDatabaseRestored(db, parts.database?.fence);
  return [probeDatabase(db), restored, probeMigrations(compare), probeClocks(db)];
}

/** What every process is asked about itself and about what it stands on. */
export function processProbes(parts: DiagnosticsParts): Probe[] {
  const { bus, database, telemetry } = parts;
  return [
    probeBuildRunning(telemetry.build),
    probeSourcesOnDisk(telemetry.build),
    ...(database ? probesOfDatabase(parts, database.db) : []),
    probeNats(bus),
    probeStreams(bus),
    probeConsumers(bus),
    probeTelemetry(telemetry),
  ];
}
