import { type Queryable, statement } from '@keytrail/storage';
import type { DeviceId } from '../domain/device.ts';

const insertRevoked = statement(
  'insert_revoked_device',
  'INSERT INTO revoked_devices (user_id, device_id, revoked_at) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING',
);

/** From here on the device's reads are misses, and it is no holder. */
export async function noteRevokedDevice(db: Queryable, { userId, deviceId }: DeviceId, revokedAt: Date): Promise<void> {
  await db.query(insertRevoked, [userId, deviceId, revokedAt]);
}
