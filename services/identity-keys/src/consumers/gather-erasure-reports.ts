import { timestampDate } from '@bufbuild/protobuf/wkt';
import { type Consumer, consumers, type EventBus, on, type Rounds, startConsumer, userErased } from '@keytrail/events';
import type { Database } from '@keytrail/storage';
import type { Logger } from '@keytrail/telemetry';
import { keepReport } from '../store/erasures.ts';

/** Keeps what the other services report of erasures. The first report of a service stands; the last one missing lets the erasure end. */
export function gatherErasureReports({
  db,
  bus,
  log,
  completing,
}: {
  readonly db: Database;
  readonly bus: EventBus;
  readonly log: Logger;
  readonly completing: Rounds;
}): Consumer {
  const reporting = Object.entries(userErased).map(([service, type]) =>
    on(type, async ({ erasureId, report }) => {
      if (!report?.erasedAt) return;
      // Named by its stream: what a report says of itself makes no service of it.
      await keepReport(db, erasureId, { service, erasedAt: timestampDate(report.erasedAt), counts: report.counts });
      completing.soon();
    }),
  );
  return startConsumer({
    bus,
    db,
    log,
    consumer: consumers.identityKeysErasure,
    handlers: Object.assign({}, ...reporting),
  });
}
