import type { Ref } from '@keytrail/crypto';
import { type Queryable, statement } from '@keytrail/storage';

/** What a device that calls is here. */
export interface Standing {
  readonly erased: boolean;
  readonly registered: boolean;
  readonly revokedAt: Date | undefined;
}

const read = statement(
  'caller_standing',
  `SELECT EXISTS (SELECT FROM erasures WHERE user_id = $1) AS erased, d.device_number IS NOT NULL AS registered, d.revoked_at
  FROM (SELECT) AS one LEFT JOIN LATERAL (SELECT device_number, revoked_at FROM devices WHERE user_id = $1 AND device_id = $2 LIMIT 1) d ON true`,
);

export async function readStanding(db: Queryable, { userId, deviceId }: Ref): Promise<Standing> {
  const [row] = await db.query<{ erased: boolean; registered: boolean; revoked_at: Date | null }>(read, [
    userId,
    deviceId,
  ]);
  if (!row) throw new Error('a standing is one row');
  return { erased: row.erased, registered: row.registered, revokedAt: row.revoked_at ?? undefined };
}
