import type { Guard } from './guard.ts';

const migration = 'services/identity-keys/prisma/migrations/20261123010000_device_logs/migration.sql';
const constraints = 'services/identity-keys/test/device-log-constraints.test.ts';
const revoking = 'services/identity-keys/test/revoke-device.test.ts';
const changing = 'services/identity-keys/test/root-key-change.test.ts';
const revoke = 'services/identity-keys/src/rpc/revoke-device.ts';
const changes = 'services/identity-keys/src/root-key-changes.ts';

/** I3 and I9: whatever is done to a device list stands in its log, for everybody to see. */
export const deviceLogs: readonly Guard[] = [
  {
    name: 'device-log-certificate',
    invariant: 'I3',
    what: 'A device has the keys and the certificate that the log’s entry says (foreign key over all of them).',
    switchOff: [
      {
        file: migration,
        find: 'FOREIGN KEY (user_id, certified_in_version, device_id, identity_key, signing_key, certificate_root_key, certified_at, certificate_signature)\n    REFERENCES device_log (user_id, version, device_id, identity_key, signing_key, root_key, certified_at, certificate_signature)',
        replace: 'CHECK (true)',
      },
    ],
    test: { file: constraints, name: 'refuses a device with another certificate than the log has' },
  },
  {
    name: 'device-log-no-return',
    invariant: 'I3',
    what: 'A revoked device never comes back (trigger).',
    switchOff: [
      {
        file: migration,
        find: 'WHEN (OLD.revoked_at IS NOT NULL AND NEW.revoked_at IS DISTINCT FROM OLD.revoked_at)',
        replace: 'WHEN (false)',
      },
    ],
    test: { file: constraints, name: 'refuses a revoked device that comes back' },
  },
  {
    name: 'device-log-chain',
    invariant: 'I9',
    what: 'An entry names the hash of the one before it, and goes on from its root key (foreign key of the log to itself).',
    switchOff: [
      {
        file: migration,
        find: 'FOREIGN KEY (user_id, previous_version, previous_hash, root_key_before)\n    REFERENCES device_log (user_id, version, entry_hash, root_key)',
        replace: 'CHECK (true)',
      },
    ],
    test: { file: constraints, name: 'refuses an entry that names another hash than that of the one before' },
  },
  {
    name: 'device-log-append-only',
    invariant: 'I9',
    what: 'An entry of the log is never changed or deleted, but with its erased user (trigger).',
    switchOff: [
      {
        file: migration,
        find: 'CREATE TRIGGER device_log_only_grows BEFORE UPDATE OR DELETE ON device_log FOR EACH ROW EXECUTE FUNCTION refuse_change_of_record();',
        replace: '',
      },
    ],
    test: { file: constraints, name: 'refuses to change an entry' },
  },
  {
    name: 'device-log-head',
    invariant: 'I9',
    what: 'The version and the log head that GetDevices answers are those of the newest entry, and never go back (trigger).',
    switchOff: [
      {
        file: migration,
        find: 'WHEN (NEW.device_list_version < OLD.device_list_version AND NEW.erased_at IS NULL)',
        replace: 'WHEN (false)',
      },
    ],
    test: { file: constraints, name: 'refuses a user’s row that goes back to an older entry' },
  },
  {
    name: 'device-log-revocation',
    invariant: 'I9',
    what: 'A device is revoked by an entry of the log about it, at the time of the entry (foreign key).',
    switchOff: [
      {
        file: migration,
        find: 'FOREIGN KEY (user_id, revoked_in_version, device_id, revoked_at)\n    REFERENCES device_log (user_id, version, device_id, revoked_at)',
        replace: 'CHECK (true)',
      },
      {
        file: migration,
        find: 'FOREIGN KEY (user_id, revoked_in_version, device_id)\n    REFERENCES revocations (user_id, version, device_id)',
        replace: 'CHECK (true)',
      },
    ],
    test: { file: constraints, name: 'refuses a revocation with the entry of another device' },
  },
  {
    name: 'device-log-revocation-signed',
    invariant: 'I9',
    what: 'A device revokes only with a signature by the user’s root key over the stored keys of the device to revoke (check in code).',
    switchOff: [
      { file: revoke, find: "  await refuseInvalidSignatures([{ field: 'signature', statement }]);\n", replace: '' },
    ],
    test: { file: revoking, name: 'with a signature by another root key, or of another device (grpc)' },
  },
  {
    name: 'device-log-revocation-order',
    invariant: 'I9',
    what: 'A revocation becomes visible only after all those with lower numbers, so that nobody who pages through them misses one (advisory lock).',
    switchOff: [
      {
        file: migration,
        find: "  PERFORM pg_advisory_xact_lock(hashtextextended('revocations', 0));\n",
        replace: '',
      },
    ],
    test: {
      file: revoking,
      name: 'shows no number before all lower ones: a later revocation waits for the commit of an earlier one',
    },
  },
  {
    name: 'device-log-caller-not-revoked',
    invariant: 'I9',
    what: 'A revoked device can neither revoke others nor change the root key (check in code, under the lock of the user).',
    switchOff: [
      {
        file: 'services/identity-keys/src/rpc/registered-device.ts',
        find: '  refuseRevoked(caller, device.revoked_at);\n',
        replace: '',
      },
    ],
    test: { file: revoking, name: 'is refused everything that changes something' },
  },
  {
    name: 'device-log-change-version',
    invariant: 'I9',
    what: 'A change of the root key is for the device list that its maker saw (compare-and-set on the version).',
    switchOff: [
      {
        file: changes,
        find: 'if (change.deviceListVersion !== user.device_list_version)',
        replace: 'if (change.deviceListVersion === 0n)',
      },
    ],
    test: { file: changing, name: 'for another version of the list' },
  },
  {
    name: 'device-log-change-signed',
    invariant: 'I9',
    what: 'Both root keys sign a change of the root key; one that the previous key did not sign is a reset, and says so (check in code).',
    switchOff: [
      {
        file: changes,
        find: "    ...(byPrevious ? [{ field: 'root_key_change.previous_signature', statement: byPrevious }] : []),\n",
        replace: '',
      },
    ],
    test: { file: changing, name: 'that another key than the previous one signed' },
  },
  {
    name: 'device-log-reset-allowed',
    invariant: 'I9',
    what: 'A reset of the root key happens only where the deployment allows it (check in code).',
    switchOff: [
      { file: changes, find: "if (!byPrevious && reset !== 'allowed')", replace: 'if (!byPrevious && !byNew)' },
    ],
    test: { file: changing, name: 'that is unsigned is refused where the deployment wants it signed' },
  },
  {
    name: 'device-log-root-key-once',
    invariant: 'I9',
    what: 'A root key that a user gave up never becomes theirs again (check in code; the primary key behind it says so without a reason).',
    switchOff: [
      {
        file: changes,
        find: 'if (await hadRootKey(tx, userId, change.newRootKey))',
        replace: 'if (userId.length === 0)',
      },
    ],
    test: { file: changing, name: 'back to a root key that the user had before' },
  },
];
