import { create } from '@bufbuild/protobuf';
import { type DeviceList, DeviceListSchema, IdentityKeysService } from '@keytrail/contracts';
import { type Rpc, refuse, unary } from '@keytrail/rpc';
import type { Database } from '@keytrail/storage';
import type { Sharing } from '../sharing.ts';
import type { Standings } from '../standings.ts';
import { type DeviceListRow, readDeviceLists } from '../store/device-lists.ts';
import { readableUsers } from './calling-standing.ts';
import { deviceMessage } from './device-messages.ts';

export interface GetDevicesParts {
  readonly db: Database;
  readonly sharing: Sharing;
  readonly standings: Standings;
  readonly maxDevicesPerAnswer: number;
}

/** Short lists share connections; long ones would hold up those behind them. */
const fewUsers = 8;

/**
 * The device lists of users, in the order asked, in one statement; users about whom the caller may not know look like ones without devices.
 * Throws DEVICE_REVOKED, LIMIT_EXCEEDED when the lists do not fit into one answer, PEER_UNAVAILABLE.
 */
export function getDevices(parts: GetDevicesParts): Rpc {
  const { db, maxDevicesPerAnswer } = parts;
  return unary(IdentityKeysService.method.getDevices, {
    allow: ['device', 'service'],
    async handle({ userIds, includeRevoked }, call) {
      const known = await readableUsers(parts, call, userIds);
      const limit = userIds.length + maxDevicesPerAnswer;
      // A stranger's id is looked up as one that nobody has, so that strangers and users without devices take the same way.
      const asked = userIds.map((userId) => (known.has(userId) ? userId : ''));
      const rows = await readDeviceLists(userIds.length > fewUsers ? db : db.pipelined, {
        userIds: asked,
        includeRevoked,
        limit,
      });
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
  if (row.root_key === null || row.device_list_version === null || row.log_head === null) return;
  list.rootKey = row.root_key;
  list.version = row.device_list_version;
  list.logHead = row.log_head;
  if (row.device_id !== null) list.devices.push(deviceMessage(list.userId, row));
}
