import { type Queryable, statement } from '@keytrail/storage';

export interface LowDevices {
  /** Devices that were told and have not put it right; counted up to 100,000. */
  readonly low: number;
  /** Of up to 10,000 of them, those without a one-time prekey. */
  readonly emptyOneTime: number;
  readonly emptyKem: number;
}

// A device whose pool is empty was told when it got low, so that nothing but the notices is looked through.
const read = statement(
  'low_devices',
  `SELECT (SELECT count(*)::int FROM (SELECT FROM low_prekey_notices LIMIT 100000) AS told) AS low,
     count(*) FILTER (WHERE NOT one_time)::int AS "emptyOneTime", count(*) FILTER (WHERE NOT kem)::int AS "emptyKem"
   FROM (SELECT EXISTS (SELECT FROM unclaimed_one_time_prekeys p WHERE p.device_number = n.device_number) AS one_time,
                EXISTS (SELECT FROM unclaimed_one_time_kem_prekeys p WHERE p.device_number = n.device_number) AS kem
         FROM low_prekey_notices n JOIN devices d USING (device_number) WHERE d.revoked_at IS NULL LIMIT 10000) AS pools`,
);

/** How many devices are low on prekeys, or have none left. */
export async function readLowDevices(db: Queryable): Promise<LowDevices> {
  const [found] = await db.query<LowDevices>(read, []);
  return found ?? { low: 0, emptyOneTime: 0, emptyKem: 0 };
}
