import type { KemPrekey, SignedPrekey } from '@keytrail/contracts';
import { statement, type Transaction } from '@keytrail/storage';
import type { Fate } from './prekeys.ts';

// The key that was current is marked as replaced by the database, with the change of the device (devices_replace_…).
const rotateSigned = statement(
  'signed_prekey_rotate',
  `WITH added AS (
  INSERT INTO signed_prekeys (device_number, key_id, public_key, signature) VALUES ($1, $2, $3, $4)
  ON CONFLICT (device_number, key_id) DO NOTHING RETURNING key_id
), current AS (
  UPDATE devices d SET current_signed_prekey_id = a.key_id FROM added a WHERE d.device_number = $1
)
SELECT CASE WHEN EXISTS (SELECT FROM added) THEN 'added' WHEN s.public_key = $3 AND s.replaced_at IS NULL THEN 'known' ELSE 'conflict' END AS fate
  FROM devices d LEFT JOIN signed_prekeys s ON s.device_number = d.device_number AND s.key_id = $2
 WHERE d.device_number = $1`,
);

const rotateLastResort = statement(
  'last_resort_prekey_rotate',
  `WITH added AS (
  INSERT INTO last_resort_prekeys (device_number, key_id, public_key, signature)
  SELECT $1, $2, $3, $4 WHERE NOT EXISTS (SELECT FROM one_time_kem_prekeys WHERE device_number = $1 AND key_id = $2)
  ON CONFLICT (device_number, key_id) DO NOTHING RETURNING key_id
), current AS (
  UPDATE devices d SET current_last_resort_prekey_id = a.key_id FROM added a WHERE d.device_number = $1
)
SELECT CASE WHEN EXISTS (SELECT FROM added) THEN 'added' WHEN l.public_key = $3 AND l.replaced_at IS NULL THEN 'known' ELSE 'conflict' END AS fate
  FROM devices d LEFT JOIN last_resort_prekeys l ON l.device_number = d.device_number AND l.key_id = $2
 WHERE d.device_number = $1`,
);

/**
 * Makes the prekey the current one: 'added'. The same key while it is current: 'known'. Any other key under a used id, and a key that was
 * current before: 'conflict', nothing changed. The device must be locked.
 */
export async function rotateSignedPrekey(tx: Transaction, deviceNumber: bigint, prekey: SignedPrekey): Promise<Fate> {
  return fateOf(await tx.query(rotateSigned, [deviceNumber, prekey.keyId, prekey.publicKey, prekey.signature]));
}

/** As `rotateSignedPrekey`; the id of a one-time KEM prekey is a conflict whatever the key. */
export async function rotateLastResortPrekey(tx: Transaction, deviceNumber: bigint, prekey: KemPrekey): Promise<Fate> {
  return fateOf(await tx.query(rotateLastResort, [deviceNumber, prekey.keyId, prekey.publicKey, prekey.signature]));
}

function fateOf([row]: { fate: Fate }[]): Fate {
  if (!row) throw new Error('the device was not locked');
  return row.fate;
}
