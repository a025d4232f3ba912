import type { DeviceLogEntry } from '@keytrail/contracts';
import { compareDeviceList, type DeviceLogState, emptyDeviceLog, verifyDeviceLog } from '@keytrail/crypto';
import { nodePrimitives } from '@keytrail/crypto/node';
import type { IdentityKeysUnderTest } from './identity-keys-fixture.ts';

/** The whole log of the user, verified as a client does, and found to be of the list that GetDevices answers. */
export async function verifiedLog(
  service: IdentityKeysUnderTest,
  userId: string,
): Promise<{ entries: DeviceLogEntry[]; state: DeviceLogState }> {
  const client = service.asService('session');
  const entries: DeviceLogEntry[] = [];
  let state = emptyDeviceLog(userId);
  for (let more = true; more; ) {
    const [log] = (await client.listDeviceLog({ users: [{ userId, afterVersion: state.version }] })).deviceLogs;
    if (!log) throw new Error('no log');
    state = verifyDeviceLog(nodePrimitives, state, log.entries);
    entries.push(...log.entries);
    more = log.more;
  }
  const [list] = (await client.getDevices({ userIds: [userId], includeRevoked: true })).deviceLists;
  if (!list) throw new Error('no list');
  compareDeviceList(state, list);
  return { entries, state };
}
