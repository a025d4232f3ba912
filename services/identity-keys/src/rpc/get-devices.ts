import { create } from '@bufbuild/protobuf';
import { type DeviceList, DeviceListSchema, IdentityKeysService } from '@keytrail/contracts';
import { type Rpc, refuse, unary } from '@keytrail/rpc';
import type { Database } from '@keytrail/storage';
import { type DeviceListRow, readDeviceLists } from '../store/device-lists.ts';
import { deviceMessage } from './device-messages.ts';

export interface GetDevicesParts {
  readonly db: Database;
  readonly maxDevicesPerAnswer: number;
}

/** The device lists of users, in the order asked, in one statement. Throws LIMIT_EXCEEDED when they do not fit into one answer. */
export function getDevices({ db, maxDevicesPerAnswer }: GetDevicesParts): Rpc {
  return unary(IdentityKeysService.method.getDevices, {
    allow: ['device', 'service'],
    async handle({ userIds, includeRevoked }) {
      const limit = userIds.length + maxDevicesPerAnswer;
      const rows = await readDeviceLists(db, { userIds, includeRevoked, limit });
      if (rows.filter((row) => row.device_id !== null).length > maxDevicesPerAnswer)
        throw refuse('LIMIT_EXCEEDED', `more than ${maxDevicesPerAnswer} devices: ask for fewer users at once`, {
          metadata: { limit: String(maxDevicesPerAnswer), scope: 'devices in one answer' },
        });
      const lists = userIds.map((userId) => create(DeviceListSchema, { userId }));
      for (const row of rows) addRow(lists[Number(row.position) - 1], row);
      return { deviceLists: lists };
    },
  });
}

function addRow(list: DeviceList | undefined, row: DeviceListRow): void {
  if (!list) throw new Error('a position beyond the users asked for');
  if (row.root_key === null || row.device_list_version === null) return;
  list.rootKey = row.root_key;
  list.version = row.device_list_version;
  if (row.device_id !== null) list.devices.push(deviceMessage(list.userId, row));
}
