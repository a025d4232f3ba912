import type { ServiceName } from '@keytrail/auth';
import { type EventBus, startEventGauges, startGauges } from '@keytrail/events';
import type { Database } from '@keytrail/storage';
import { type Logger, metricAttr } from '@keytrail/telemetry';

export interface ProcessGauges {
  readonly service: ServiceName;
  readonly bus: EventBus;
  /** Absent in services without a database. */
  readonly database?: { readonly db: Database; readonly migrationsFolder: string };
  readonly everyMs: number;
  readonly log: Logger;
}

const states = ['current', 'behind', 'ahead', 'diverged'] as const;

/** Tells of what every process stands on: events, and whether its database fits its build. */
export function startProcessGauges({ service, bus, database, everyMs, log }: ProcessGauges): { stop(): Promise<void> } {
  const running: { stop(): Promise<void> }[] = [
    startEventGauges({ bus, service, everyMs, log, ...(database && { db: database.db }) }),
  ];
  if (database)
    running.push(
      startGauges({
        what: 'the look at the schema',
        gauges: ['schemaState'],
        everyMs,
        log,
        async read() {
          const { state } = await database.db.schema.check();
          return (observe) => {
            for (const each of states)
              observe('schemaState', each === state.state ? 1 : 0, { [metricAttr.schemaState]: each });
          };
        },
      }),
    );
  return {
    async stop() {
      await Promise.all(running.map((each) => each.stop()));
    },
  };
}
