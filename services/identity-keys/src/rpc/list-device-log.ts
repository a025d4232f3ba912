import { create } from '@bufbuild/protobuf';
import { type DeviceLog, DeviceLogSchema, IdentityKeysService } from '@keytrail/contracts';
import { invalidField, type Rpc, unary } from '@keytrail/rpc';
import type { Database } from '@keytrail/storage';
import type { Sharing } from '../sharing.ts';
import type { Standings } from '../standings.ts';
import { type DeviceLogRow, readDeviceLogs } from '../store/device-log.ts';
import { readableUsers } from './calling-standing.ts';
import { deviceLogEntryMessage } from './device-log-messages.ts';

export interface ListDeviceLogParts {
  readonly db: Database;
  readonly sharing: Sharing;
  readonly standings: Standings;
  readonly maxEntriesPerAnswer: number;
}

/**
 * The device logs of users after a version each, in the order asked; users about whom the caller may not know look like ones without
 * devices. Entries that do not fit into one answer are told by `more`. Throws DEVICE_REVOKED, PEER_UNAVAILABLE.
 */
export function listDeviceLog(parts: ListDeviceLogParts): Rpc {
  const { db, maxEntriesPerAnswer } = parts;
  return unary(IdentityKeysService.method.listDeviceLog, {
    allow: ['device', 'service'],
    async handle({ users }, call) {
      const repeated = users.findIndex(({ userId }, i) => users.findIndex((other) => other.userId === userId) < i);
      if (repeated >= 0) throw invalidField(`users[${repeated}].user_id`, 'the user stands twice in the request');
      const known = await readableUsers(
        parts,
        call,
        users.map(({ userId }) => userId),
      );
      // A stranger's id is looked up as one that nobody has, so that strangers and users without devices take the same way.
      const asked = users.map(({ userId, afterVersion }) => ({
        userId: known.has(userId) ? userId : '',
        afterVersion,
      }));
      const logs = users.map(({ userId }) => create(DeviceLogSchema, { userId }));
      for (const row of await readDeviceLogs(db, asked, maxEntriesPerAnswer))
        addRow(logs[Number(row.position) - 1], row);
      users.forEach(({ afterVersion }, i) => {
        const log = logs[i];
        if (log) log.more = (log.entries.at(-1)?.version ?? afterVersion) < log.version;
      });
      return { deviceLogs: logs };
    },
  });
}

function addRow(log: DeviceLog | undefined, row: DeviceLogRow): void {
  if (!log) throw new Error('a position beyond the users asked for');
  if (row.device_list_version === null || row.log_head === null) return;
  log.version = row.device_list_version;
  log.logHead = row.log_head;
  const entry = deviceLogEntryMessage(row);
  if (entry) log.entries.push(entry);
}
