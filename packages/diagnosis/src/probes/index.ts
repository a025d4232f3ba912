import type { Probe } from '../check.ts';
import type { DiagnosticsParts } from '../parts.ts';
import { probeConsumers } from './consumers.ts';
import { probeDatabase } from './database.ts';
import { probeNats } from './nats.ts';
import { probeStreams } from './streams.ts';
import { probeTelemetry } from './telemetry.ts';

/** What every process is asked about itself and about what it stands on. */
export function processProbes(parts: DiagnosticsParts): Probe[] {
  const { bus, database, telemetry } = parts;
  return [
    ...(database ? [probeDatabase(database.db)] : []),
    probeNats(bus),
    probeStreams(bus),
    probeConsumers(bus),
    probeTelemetry(telemetry),
  ];
}
