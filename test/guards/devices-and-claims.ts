import type { Guard } from './guard.ts';

const migration = 'services/identity-keys/prisma/migrations/20261122120000_devices_prekeys_claims/migration.sql';
const wholeDevice = 'services/identity-keys/test/whole-device.test.ts';
const registering = 'services/identity-keys/test/register-device.test.ts';
const claiming = 'services/identity-keys/test/claim-prekey-bundles.test.ts';
const replenishing = 'services/identity-keys/test/replenish-prekeys.test.ts';
const claims = 'services/identity-keys/src/store/claims.ts';
const registration = 'services/identity-keys/src/rpc/register-device.ts';

/** I3, whole device; I4, one key, one claim. */
export const devicesAndClaims: readonly Guard[] = [
  {
    name: 'device-has-signed-prekey',
    invariant: 'I3',
    what: 'A device points to a signed prekey of its own at every commit (foreign key).',
    switchOff: [
      {
        file: migration,
        find: 'FOREIGN KEY (device_number, current_signed_prekey_id) REFERENCES signed_prekeys (device_number, key_id) DEFERRABLE INITIALLY DEFERRED',
        replace: 'CHECK (true)',
      },
    ],
    test: { file: wholeDevice, name: 'a device that points to a signed prekey it does not have' },
  },
  {
    name: 'device-has-last-resort-prekey',
    invariant: 'I3',
    what: 'A device points to a last-resort prekey of its own at every commit, so that its pools never run dry (foreign key).',
    switchOff: [
      {
        file: migration,
        find: 'FOREIGN KEY (device_number, current_last_resort_prekey_id) REFERENCES last_resort_prekeys (device_number, key_id) DEFERRABLE INITIALLY DEFERRED',
        replace: 'CHECK (true)',
      },
    ],
    test: { file: wholeDevice, name: 'a device that points to a one-time prekey as its last resort' },
  },
  {
    name: 'device-has-identity-key',
    invariant: 'I3',
    what: 'A device row has its identity key (NOT NULL).',
    switchOff: [
      {
        file: migration,
        find: 'identity_key                  bytea       NOT NULL CHECK (octet_length(identity_key) = 32)',
        replace: 'identity_key                  bytea       CHECK (octet_length(identity_key) = 32)',
      },
    ],
    test: { file: wholeDevice, name: 'a device with no identity_key' },
  },
  {
    name: 'device-under-users-root-key',
    invariant: 'I3',
    what: 'While a device is not revoked, its certificate is by the present root key of its user (foreign key).',
    switchOff: [
      {
        file: 'services/identity-keys/prisma/migrations/20261123010000_device_logs/migration.sql',
        find: 'FOREIGN KEY (user_id, active_root_key) REFERENCES users (user_id, root_key)',
        replace: 'FOREIGN KEY (user_id) REFERENCES users (user_id)',
      },
    ],
    test: { file: wholeDevice, name: 'a device under another root key than its user’s' },
  },
  {
    name: 'one-root-key-per-user',
    invariant: 'I3',
    what: 'RegisterDevice refuses another root key than the user has, and says so (check in code; the chain of the log stands behind it).',
    switchOff: [
      {
        file: 'services/identity-keys/src/rpc/refuse-other-root-key.ts',
        find: 'if (present && Buffer.compare(present, rootKey) === 0) return;',
        replace: 'if (present || rootKey.length > 0) return;',
      },
    ],
    test: { file: registering, name: 'come with one version each, and with one root key' },
  },
  {
    name: 'uploaded-keys-are-checked',
    invariant: 'I3',
    what: 'Uploaded keys are refused when they are of low order, not canonical, or fail the modulus check (check in code).',
    switchOff: [{ file: registration, find: 'await refuseInvalidKeys(keysOfDevice(request));', replace: '' }],
    test: { file: registering, name: 'with a one-time prekey of low order stores nothing' },
  },
  {
    name: 'uploaded-signatures-are-verified',
    invariant: 'I3',
    what: 'The certificate and the signatures of all prekeys are verified before anything is stored (check in code).',
    switchOff: [{ file: registration, find: 'await refuseInvalidSignatures(signatures);', replace: '' }],
    test: { file: registering, name: 'with a certificate by another root key stores nothing' },
  },
  {
    name: 'registration-keeps-keys',
    invariant: 'I3',
    what: 'A device id that is registered keeps its keys: another key set under it is refused (digest compare).',
    switchOff: [
      {
        file: registration,
        find: 'if (Buffer.compare(known.registered_keys_digest, keysDigest) !== 0)',
        replace: 'if (keysDigest.length === 0)',
      },
    ],
    test: { file: registering, name: 'with other keys is refused and changes nothing' },
  },
  {
    name: 'claim-locks-prekey',
    invariant: 'I4',
    what: 'A claim holds the prekey it takes locked, and passes over those that others hold (FOR UPDATE SKIP LOCKED).',
    switchOff: [
      {
        file: claims,
        find: `FROM unclaimed_one_time_prekeys p WHERE p.device_number = a.claimable
                        ORDER BY p.seq LIMIT 1 FOR UPDATE SKIP LOCKED) o ON true`,
        replace: `FROM unclaimed_one_time_prekeys p WHERE p.device_number = a.claimable
                        ORDER BY p.seq LIMIT 1) o ON true`,
      },
    ],
    test: {
      file: claiming,
      name: 'get each prekey once, none is told "none left" too early, and repetitions get their own again',
    },
  },
  {
    name: 'claim-waits-for-held-prekeys',
    invariant: 'I4',
    what: 'A claim that passed over held prekeys does not stand but waits for them: nobody is told "none" too early.',
    switchOff: [{ file: claims, find: 'bool_or(passed_over)\n    FROM taken', replace: 'false\n    FROM taken' }],
    test: { file: 'services/identity-keys/test/held-prekeys.test.ts', name: 'all get a prekey of their own' },
  },
  {
    name: 'no-claim-that-passed-over',
    invariant: 'I4',
    what: 'A claim that passed over a prekey cannot be recorded, by whatever statement (check).',
    switchOff: [{ file: migration, find: 'CHECK (NOT passed_over)', replace: 'CHECK (true)' }],
    test: { file: wholeDevice, name: 'a claim that passed over a prekey which another claim held' },
  },
  {
    name: 'one-claim-per-claim-id',
    invariant: 'I4',
    what: 'Two claims under one claim id at the same time are one claim with one answer (primary key).',
    switchOff: [
      {
        file: migration,
        find: '  PRIMARY KEY (caller, claim_id)\n);\nCREATE INDEX claims_by_age',
        replace: '  CHECK (true)\n);\nCREATE INDEX claims_by_age',
      },
    ],
    test: {
      file: 'services/identity-keys/test/claim-ids.test.ts',
      name: 'a claim under an id whose first claim is not committed yet waits for it, and gets its bundle',
    },
  },
  {
    name: 'claim-id-content',
    invariant: 'I4',
    what: 'A claim id that comes again for other devices is refused (digest compare).',
    switchOff: [
      {
        file: claims,
        find: 'if (!recorded.devices_digest.equals(devicesDigest)) throw new ClaimIdReused();',
        replace: '',
      },
    ],
    test: { file: claiming, name: 'for other devices is refused; the id of another caller is another claim' },
  },
  {
    name: 'claimed-prekey-stays-known',
    invariant: 'I4',
    what: 'A prekey that was uploaded before, claimed or not, never enters the pool again (its row stays as a tombstone; the trigger behind it is off too).',
    switchOff: [
      {
        file: 'services/identity-keys/src/store/prekeys.ts',
        find: `INSERT INTO unclaimed_one_time_prekeys (device_number, seq, key_id)
  SELECT $1, c.before + row_number() OVER (ORDER BY o.position), o.key_id FROM added JOIN offered o USING (key_id) CROSS JOIN counted c`,
        replace: `INSERT INTO unclaimed_one_time_prekeys (device_number, seq, key_id)
  SELECT $1, 1000 * (SELECT count(*) FROM one_time_prekeys) + (SELECT coalesce(max(seq), 0) FROM unclaimed_one_time_prekeys)
         + c.before + row_number() OVER (ORDER BY o.position), o.key_id FROM offered o CROSS JOIN counted c`,
      },
      {
        file: 'services/identity-keys/prisma/migrations/20261123020000_prekey_ages/migration.sql',
        find: `CREATE TRIGGER one_time_prekeys_enter_once AFTER INSERT ON unclaimed_one_time_prekeys
  REFERENCING NEW TABLE AS entered FOR EACH STATEMENT EXECUTE FUNCTION one_time_prekeys_enter_once();`,
        replace: '',
      },
    ],
    test: { file: replenishing, name: 'change nothing, claimed or not: a claimed prekey never comes back' },
  },
  {
    name: 'prekey-id-names-one-key',
    invariant: 'I4',
    what: 'An id that names a prekey, or named one, is refused for another key (check in code).',
    switchOff: [
      {
        file: 'services/identity-keys/src/rpc/refuse-conflict.ts',
        find: 'if (index >= 0) throw',
        replace: 'if (index >= 1_000_000) throw',
      },
    ],
    test: { file: replenishing, name: 'with another key under the same id are refused, claimed or not' },
  },
];
