import type { Guard } from './guard.ts';

const migration = 'services/identity-keys/prisma/migrations/20261123020000_prekey_ages/migration.sql';
const ages = 'services/identity-keys/test/prekey-ages.test.ts';
const rotating = 'services/identity-keys/test/rotate-prekeys.test.ts';
const low = 'services/identity-keys/test/low-prekeys.test.ts';
const checking = 'services/identity-keys/test/check-keys.test.ts';
const retired = 'services/identity-keys/src/store/retired-prekeys.ts';

/** I4, one key, one claim, over the whole life of a prekey; and that a device learns of empty pools. */
export const prekeyLife: readonly Guard[] = [
  {
    name: 'prekey-enters-pool-once',
    invariant: 'I4',
    what: 'A prekey enters its pool in the transaction that adds it, and once: claimed or retired, no statement brings it back (trigger).',
    switchOff: [
      {
        file: migration,
        find: 'CREATE TRIGGER kem_prekeys_enter_once AFTER INSERT ON unclaimed_one_time_kem_prekeys\n  REFERENCING NEW TABLE AS entered FOR EACH STATEMENT EXECUTE FUNCTION kem_prekeys_enter_once();',
        replace: '',
      },
    ],
    test: {
      file: ages,
      name: 'by straight SQL, unclaimed_one_time_kem_prekeys does not take a prekey back that was claimed',
    },
  },
  {
    name: 'pool-row-keeps-its-key',
    invariant: 'I4',
    what: 'A row of a pool never becomes that of another prekey (trigger).',
    switchOff: [
      {
        file: migration,
        find: 'CREATE TRIGGER unclaimed_prekeys_never_change BEFORE UPDATE ON unclaimed_one_time_prekeys\n  FOR EACH ROW EXECUTE FUNCTION unclaimed_prekeys_never_change();',
        replace: '',
      },
    ],
    test: {
      file: ages,
      name: 'by straight SQL, unclaimed_one_time_prekeys does not let a row become that of another key',
    },
  },
  {
    name: 'unclaimed-prekey-keeps-bytes',
    invariant: 'I4',
    what: 'A stored prekey shrinks to its SHA-256 and changes in no other way, and not while it is unclaimed (trigger).',
    switchOff: [
      {
        file: migration,
        find: 'CREATE CONSTRAINT TRIGGER one_time_prekeys_only_shrink AFTER UPDATE ON one_time_prekeys\n  FOR EACH ROW EXECUTE FUNCTION one_time_prekeys_only_shrink();',
        replace: '',
      },
    ],
    test: {
      file: ages,
      name: 'by straight SQL, of unclaimed_one_time_prekeys the keys cannot lose their bytes while they are unclaimed',
    },
  },
  {
    name: 'shrunk-prekey-is-known',
    invariant: 'I4',
    what: 'An id whose prekey has shrunk to its SHA-256 still takes the same key as a no-op (compare with the digest).',
    switchOff: [
      {
        file: 'services/identity-keys/src/store/prekeys.ts',
        find: `k.public_key_digest = sha256(o.public_key)) THEN 'known' ELSE 'conflict' END AS fate
  FROM offered o LEFT JOIN added a USING (key_id)
  LEFT JOIN one_time_kem_prekeys`,
        replace: `k.public_key_digest <> k.public_key_digest) THEN 'known' ELSE 'added' END AS fate
  FROM offered o LEFT JOIN added a USING (key_id)
  LEFT JOIN one_time_kem_prekeys`,
      },
    ],
    test: {
      file: ages,
      name: 'a claimed prekey keeps its bytes while its claim can be repeated, and its SHA-256 for ever',
    },
  },
  {
    name: 'kem-id-names-one-kind',
    invariant: 'I4',
    what: 'One id never names a one-time and a last-resort KEM prekey, also when both are added at once (trigger, holding the device).',
    switchOff: [
      {
        file: migration,
        find: 'CREATE TRIGGER kem_prekey_ids_name_one_kind AFTER INSERT ON one_time_kem_prekeys\n  REFERENCING NEW TABLE AS entered FOR EACH STATEMENT EXECUTE FUNCTION one_time_kem_prekey_ids_are_their_own();',
        replace: '',
      },
    ],
    test: {
      file: ages,
      name: 'by straight SQL, an id of a KEM prekey names one kind also when both are added at the same time',
    },
  },
  {
    name: 'replaced-prekey-stays-replaced',
    invariant: 'I4',
    what: 'A signed prekey that was replaced never becomes current again (trigger).',
    switchOff: [
      {
        file: migration,
        find: "IF replaced IS NOT NULL THEN\n    RAISE EXCEPTION 'a signed prekey that was replaced is current no more'",
        replace: "IF false THEN\n    RAISE EXCEPTION 'a signed prekey that was replaced is current no more'",
      },
    ],
    test: { file: ages, name: 'by straight SQL, of signed_prekeys one that was replaced never becomes current again' },
  },
  {
    name: 'rotation-by-stored-key',
    invariant: 'I3',
    what: 'Rotated prekeys are verified against the signing key that is stored (check in code).',
    switchOff: [
      {
        file: 'services/identity-keys/src/rpc/rotate-signed-prekey.ts',
        find: 'await refuseInvalidSignatures(signaturesOfRotation(device, request));',
        replace: '',
      },
    ],
    test: { file: rotating, name: 'over grpc a rotation is verified against the signing key that is stored' },
  },
  {
    name: 'retirement-waits-for-claims',
    invariant: 'I4',
    what: 'A prekey that a device gives up is waited for when a claim holds it: it does not stay in the pool if the claim fails (FOR UPDATE).',
    switchOff: [
      {
        file: retired,
        find: 'ANY ($2::bigint[]) ORDER BY seq FOR UPDATE\n',
        replace: 'ANY ($2::bigint[]) ORDER BY seq FOR UPDATE SKIP LOCKED\n',
      },
    ],
    test: {
      file: 'services/identity-keys/test/retire-prekeys.test.ts',
      name: 'a prekey that a claim holds is waited for, and retired only if the claim fails (rolls back)',
    },
  },
  {
    name: 'low-pool-without-notice-is-found',
    invariant: 'I4',
    what: 'The sweep tells a device whose pool is low though the claim that should have told it never did.',
    switchOff: [
      {
        file: 'services/identity-keys/src/jobs/watch-prekeys.ts',
        find: 'if (fresh.length > 0) await publishNotices(tx, await noteDuePrekeys(tx, fresh, limits));',
        replace: '',
      },
    ],
    test: {
      file: low,
      name: 'a device whose pool is low is found though the claim that should have told it crashed before it did',
    },
  },
  {
    name: 'one-replica-reminds',
    invariant: 'I4',
    what: 'A device is reminded of low prekeys by one replica (row locks on the notices).',
    switchOff: [
      {
        file: 'services/identity-keys/src/store/low-prekey-notices.ts',
        find: 'ORDER BY n.noticed_at LIMIT $5 FOR UPDATE SKIP LOCKED',
        replace: 'ORDER BY n.noticed_at LIMIT $5',
      },
    ],
    test: { file: low, name: 'is not reminded a second time by a replica that comes while the first is at it' },
  },
  {
    name: 'lost-prekeys-are-noticed',
    invariant: 'I4',
    what: 'CheckKeys does not match while the service would hand out a prekey that the device does not hold (check in code).',
    switchOff: [
      {
        file: 'services/identity-keys/src/rpc/check-keys.ts',
        find: 'agrees && oneTime.notHeld.length + kem.notHeld.length === 0',
        replace: 'agrees',
      },
    ],
    test: {
      file: checking,
      name: 'what differs is named prekeys in the pool that the device lost, though all that it names is right',
    },
  },
];
