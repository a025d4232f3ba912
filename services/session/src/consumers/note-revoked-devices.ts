import { timestampDate } from '@bufbuild/protobuf/wkt';
import {
  type Consumer,
  consumers,
  deviceListChanged,
  type EventBus,
  onInTransaction,
  startConsumer,
} from '@keytrail/events';
import type { Database } from '@keytrail/storage';
import type { Logger } from '@keytrail/telemetry';
import { noteRevokedDevices as note } from '../store/revoked-devices.ts';

/** Keeps the local list of revoked devices that the hit statement joins: there a revocation counts as soon as its event is here. */
export function noteRevokedDevices({ db, log }: { db: Database; log: Logger }, bus: EventBus): Consumer {
  return startConsumer({
    bus,
    db,
    log,
    consumer: consumers.sessionDevices,
    handlers: onInTransaction(deviceListChanged, async ({ revoked, userId, deviceId, changedAt }, tx) => {
      if (!revoked) return;
      await note(tx, [{ userId, deviceId, revokedAt: changedAt ? timestampDate(changedAt) : new Date() }]);
    }),
  });
}
