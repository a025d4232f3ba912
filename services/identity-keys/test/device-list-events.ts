import { fromBinary } from '@bufbuild/protobuf';
import {
  type DeviceListChanged,
  DeviceListChangedSchema,
  type RootKeyChanged,
  RootKeyChangedSchema,
} from '@keytrail/contracts';
import { connect } from '@nats-io/transport-node';

const listChanged = 'keytrail.identitykeys.v1.device_list_changed';
const keyChanged = 'keytrail.identitykeys.v1.root_key_changed';

export interface UserEvents {
  /** The next `count` events about the user, in the order in which they were published. */
  next(count: number): Promise<(DeviceListChanged | RootKeyChanged)[]>;
  close(): Promise<void>;
}

/** What is published about the device list and the root key of one user behind a version: events of what was before may still be on their way. */
export async function eventsAbout(userId: string, natsUrl: string, behind: bigint): Promise<UserEvents> {
  const connection = await connect({ servers: new URL(natsUrl).host });
  const messages = connection.subscribe('keytrail.identitykeys.v1.*')[Symbol.asyncIterator]();
  await connection.flush();

  async function nextEvent(): Promise<DeviceListChanged | RootKeyChanged> {
    for (;;) {
      const { value, done } = await messages.next();
      if (done) throw new Error('the subscription ended');
      if (value.subject !== listChanged && value.subject !== keyChanged) continue;
      const event =
        value.subject === keyChanged
          ? fromBinary(RootKeyChangedSchema, value.data)
          : fromBinary(DeviceListChangedSchema, value.data);
      if (event.userId === userId && event.version > behind) return event;
    }
  }

  return {
    async next(count) {
      const events = [];
      for (let i = 0; i < count; i++) events.push(await nextEvent());
      return events;
    },
    close: () => connection.close(),
  };
}
