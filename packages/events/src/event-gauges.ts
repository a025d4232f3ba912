import { type Database, statement } from '@keytrail/storage';
import { attr, type Logger, metricAttr } from '@keytrail/telemetry';
import type { EventBus } from './bus.ts';
import { consumers } from './catalogue.ts';
import { type Gauges, startGauges } from './gauges.ts';
import { readOutboxLag } from './outbox-lag.ts';

export interface EventGauges {
  readonly bus: EventBus;
  /** Of the service; without it there is neither outbox nor dead letters to be counted. */
  readonly db?: Database;
  /** Whose consumers are told of: `session`. */
  readonly service: string;
  readonly everyMs: number;
  readonly log: Logger;
}

const countLetters = statement(
  'dead_letters_by_consumer',
  `SELECT consumer, count(*)::int AS letters FROM (SELECT consumer FROM dead_letters LIMIT 10000) AS kept GROUP BY consumer`,
);

/** Tells how far events are behind: consumers on their streams, the outbox, and what was given up. Every replica tells the same. */
export function startEventGauges({ bus, db, service, everyMs, log }: EventGauges): Gauges {
  const own = Object.values(consumers).flatMap(({ name }) => (name.startsWith(`${service}-`) ? [name] : []));
  const running: Gauges[] = [];
  if (own.length > 0)
    running.push(
      startGauges({
        what: 'the look at consumers',
        gauges: ['consumerPending', 'consumerUnacknowledged'],
        everyMs,
        log,
        async read() {
          const lags = (await bus.consumerLags()).filter(({ consumer }) => own.some((name) => name === consumer));
          return (observe) => {
            for (const { consumer, stream, pending, unsettled } of lags) {
              const attributes = { [attr.messagingConsumer]: consumer, [metricAttr.messagingStream]: stream };
              observe('consumerPending', pending, attributes);
              observe('consumerUnacknowledged', unsettled, attributes);
            }
          };
        },
      }),
    );
  if (db)
    running.push(
      startGauges({
        what: 'the look at the outbox',
        gauges: ['outboxPending', 'outboxOldestAge'],
        everyMs,
        log,
        async read() {
          const { pending, oldestAgeMs } = await readOutboxLag(db);
          return (observe) => {
            observe('outboxPending', pending);
            observe('outboxOldestAge', oldestAgeMs / 1000);
          };
        },
      }),
    );
  if (db)
    running.push(
      startGauges({
        what: 'the look at dead letters',
        gauges: ['deadLetters'],
        everyMs,
        log,
        async read() {
          const kept = await db.query<{ consumer: string; letters: number }>(countLetters, []);
          // A consumer without any tells 0, so that an alert sees that it was put right.
          const letters = new Map([
            ...own.map((name) => [name, 0] as const),
            ...kept.map((row) => [row.consumer, row.letters] as const),
          ]);
          return (observe) => {
            for (const [consumer, number] of letters)
              observe('deadLetters', number, { [attr.messagingConsumer]: consumer });
          };
        },
      }),
    );
  return {
    looked: Promise.all(running.map((each) => each.looked)).then(() => {}),
    async stop() {
      await Promise.all(running.map((each) => each.stop()));
    },
  };
}
