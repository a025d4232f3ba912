import { statement, type Transaction } from '@keytrail/storage';

// At once, however many there are. What was in the pools stays in the tables of prekeys: no id of it ever names another key, and none of it
// enters a pool again. Claims that are under way are waited for; they have not passed the fence, or hold what was added since.
const empty = statement('void_pools', 'TRUNCATE unclaimed_one_time_prekeys, unclaimed_one_time_kem_prekeys');
const tellAnew = statement('void_notices', 'DELETE FROM low_prekey_notices');
const beginSweep = statement('void_sweep_anew', 'UPDATE prekey_sweep SET after_device_number = 0');
// Who reads the list of revocations goes on behind the highest number seen, which the database may have forgotten. A sequence keeps what it was set
// to also when the transaction is rolled back: it then jumps once more.
const leapRevocations = statement(
  'restore_leap_revocation_numbers',
  `SELECT setval('revocation_numbers', last_value + (1::bigint << 32)) FROM revocation_numbers`,
);

/**
 * Voids every one-time prekey that is still to be handed out: a database that went back in time has handed some of them out before. Every device
 * is found with empty pools by the next sweep, by whoever claims from it, and by its own next look at its status, and is asked to refill.
 * Revocations go on with numbers that nobody has read past.
 */
export async function recoverFromRestore(tx: Transaction): Promise<void> {
  await tx.query(empty, []);
  await tx.query(tellAnew, []);
  await tx.query(beginSweep, []);
  await tx.query(leapRevocations, []);
}
