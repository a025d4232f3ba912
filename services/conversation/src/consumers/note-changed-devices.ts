import { timestampDate } from '@bufbuild/protobuf/wkt';
import {
  type Consumer,
  consumers,
  deviceListChanged,
  type EventBus,
  onInTransaction,
  type Rounds,
  rootKeyChanged,
  startConsumer,
} from '@keytrail/events';
import type { Database } from '@keytrail/storage';
import type { Logger } from '@keytrail/telemetry';
import { noteChangedIdentity, noteRevokedDevices } from '../store/revoked-devices.ts';

interface ConsumerParts {
  readonly db: Database;
  readonly bus: EventBus;
  readonly reach: Rounds;
  readonly log: Logger;
}

/** Notes revoked devices and changed root keys in one short transaction; their conversations are reached afterwards, page by page. */
export function noteChangedDevices({ db, bus, reach, log }: ConsumerParts): Consumer {
  return startConsumer({
    bus,
    db,
    log,
    consumer: consumers.conversationDevices,
    handlers: {
      ...onInTransaction(deviceListChanged, async ({ userId, deviceId, revoked, changedAt }, tx) => {
        if (!revoked) return;
        const revokedAt = changedAt ? timestampDate(changedAt) : new Date();
        await noteRevokedDevices(tx, [{ userId, deviceId, revokedAt }]);
        tx.afterCommit(() => reach.soon());
      }),
      ...onInTransaction(rootKeyChanged, async ({ userId }, tx) => {
        await noteChangedIdentity(tx, userId);
        tx.afterCommit(() => reach.soon());
      }),
    },
  });
}
