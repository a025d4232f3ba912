import {
  type Consumer,
  consumers,
  deviceAttached,
  type EventBus,
  on,
  type Rounds,
  startConsumer,
} from '@keytrail/events';
import type { Database } from '@keytrail/storage';
import type { Logger } from '@keytrail/telemetry';
import { wakeRotationsOf } from '../store/rotations.ts';

interface ConsumerParts {
  readonly db: Database;
  readonly bus: EventBus;
  readonly asking: Rounds;
  readonly log: Logger;
}

/** When a device attaches, the rotations of its user's conversations for which nobody could be asked are looked at again. */
export function askAttachedDevices({ db, bus, asking, log }: ConsumerParts): Consumer {
  return startConsumer({
    bus,
    db,
    log,
    consumer: consumers.conversationPresence,
    handlers: on(deviceAttached, async ({ device }) => {
      if (device && (await wakeRotationsOf(db, device.userId)) > 0) asking.soon();
    }),
  });
}
