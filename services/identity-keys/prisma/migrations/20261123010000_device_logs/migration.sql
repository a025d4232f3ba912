-- The log of each user's device list, the history of root keys, revocations, recoveries and the audit log.

-- The list is of whole milliseconds, as everything that is hashed is.
UPDATE devices SET added_at = date_trunc('milliseconds', added_at), revoked_at = date_trunc('milliseconds', revoked_at);

ALTER TABLE users
  ADD COLUMN log_head bytea CHECK (octet_length(log_head) = 32),
  ADD COLUMN erased_at timestamptz;

-- Every root key that a user ever had: none comes back.
CREATE TABLE root_keys (
  user_id       text   NOT NULL REFERENCES users (user_id),
  root_key      bytea  NOT NULL CHECK (octet_length(root_key) = 32),
  since_version bigint NOT NULL CHECK (since_version >= 1),
  CONSTRAINT root_keys_never_come_back PRIMARY KEY (user_id, root_key),
  CONSTRAINT root_keys_one_per_version UNIQUE (user_id, since_version)
);

-- The parts of a hashed text, "encoding" in docs/wire-formats.md. Their bodies are bound when they are made, so that a restore, which has
-- an empty search path, finds them.
CREATE FUNCTION transcript_part(part bytea) RETURNS bytea LANGUAGE sql IMMUTABLE PARALLEL SAFE
  RETURN int4send(octet_length(coalesce(part, ''))) || coalesce(part, '');
CREATE FUNCTION transcript_part(part text) RETURNS bytea LANGUAGE sql IMMUTABLE PARALLEL SAFE
  RETURN transcript_part(convert_to(part, 'UTF8'));
CREATE FUNCTION transcript_part(part bigint) RETURNS bytea LANGUAGE sql IMMUTABLE PARALLEL SAFE
  RETURN transcript_part(int8send(coalesce(part, 0)));
CREATE FUNCTION transcript_part(part timestamptz) RETURNS bytea LANGUAGE sql IMMUTABLE PARALLEL SAFE
  RETURN transcript_part((extract(epoch FROM part) * 1000)::bigint);

-- One row for each change of a device list, chained by hashes. Nobody computes a hash but the database itself, from the columns it keeps
-- ("device log" in docs/wire-formats.md). Kinds: 1 added, 2 revoked, 3 root key changed, 4 certified again.
CREATE TABLE device_log (
  user_id               text        NOT NULL REFERENCES users (user_id),
  version               bigint      NOT NULL CHECK (version >= 1),
  kind                  smallint    NOT NULL CHECK (kind BETWEEN 1 AND 4),
  previous_hash         bytea       NOT NULL CHECK (octet_length(previous_hash) = 32),
  recorded_at           timestamptz NOT NULL CONSTRAINT device_log_whole_milliseconds CHECK (recorded_at = date_trunc('milliseconds', recorded_at)),
  root_key              bytea       NOT NULL,
  device_id             text        CHECK (device_id ~ '^[A-Za-z0-9._:@-]{1,64}$'),
  identity_key          bytea       CHECK (octet_length(identity_key) = 32),
  signing_key           bytea       CHECK (octet_length(signing_key) = 32),
  certified_at          timestamptz,
  certificate_signature bytea       CHECK (octet_length(certificate_signature) = 64),
  revoked_by            smallint    CHECK (revoked_by BETWEEN 1 AND 3),
  revoking_device_id    text        CHECK (revoking_device_id ~ '^[A-Za-z0-9._:@-]{1,64}$'),
  revocation_signed_at  timestamptz,
  revocation_signature  bytea       CHECK (octet_length(revocation_signature) = 64),
  previous_root_key     bytea,
  previous_signature    bytea       CHECK (octet_length(previous_signature) IN (0, 64)),
  new_signature         bytea       CHECK (octet_length(new_signature) = 64),

  previous_version      bigint      GENERATED ALWAYS AS (nullif(version, 1) - 1) STORED,
  root_key_before       bytea       GENERATED ALWAYS AS (coalesce(previous_root_key, root_key)) STORED,
  added_at              timestamptz GENERATED ALWAYS AS (CASE kind WHEN 1 THEN recorded_at END) STORED,
  revoked_at            timestamptz GENERATED ALWAYS AS (CASE kind WHEN 2 THEN recorded_at END) STORED,
  entry_hash            bytea       GENERATED ALWAYS AS (sha256(
      transcript_part('keytrail/v1/device-log-entry'::text)
      || transcript_part(previous_hash)
      || transcript_part(user_id)
      || transcript_part(version)
      || transcript_part(kind::bigint)
      || transcript_part(recorded_at)
      || transcript_part(root_key)
      || transcript_part(device_id)
      || transcript_part(identity_key)
      || transcript_part(signing_key)
      || transcript_part(certified_at)
      || transcript_part(certificate_signature)
      || transcript_part(revoked_by::bigint)
      || transcript_part(revoking_device_id)
      || transcript_part(revocation_signed_at)
      || transcript_part(revocation_signature)
      || transcript_part(previous_root_key)
      || transcript_part(CASE kind WHEN 3 THEN version - 1 END)
      || transcript_part(previous_signature)
      || transcript_part(new_signature))) STORED,

  PRIMARY KEY (user_id, version),
  CONSTRAINT device_log_begins_with_a_device CHECK (version > 1 OR kind = 1),
  CONSTRAINT device_log_begins_with_zeros CHECK ((version = 1) = (previous_hash = '\x0000000000000000000000000000000000000000000000000000000000000000')),
  CONSTRAINT device_log_names_the_device CHECK (num_nonnulls(device_id, identity_key, signing_key) = CASE kind WHEN 3 THEN 0 ELSE 3 END),
  CONSTRAINT device_log_has_the_certificate
    CHECK (num_nonnulls(certified_at, certificate_signature) = CASE WHEN kind IN (1, 4) THEN 2 ELSE 0 END),
  CONSTRAINT device_log_tells_who_revoked CHECK (
    (revoked_by IS NOT NULL) = (kind = 2)
    AND (revoking_device_id IS NOT NULL) = coalesce(revoked_by IN (1, 3), false)
    AND num_nonnulls(revocation_signed_at, revocation_signature) = CASE revoked_by WHEN 1 THEN 2 ELSE 0 END),
  CONSTRAINT device_log_has_the_root_key_change CHECK (
    num_nonnulls(previous_root_key, previous_signature, new_signature) = CASE kind WHEN 3 THEN 3 ELSE 0 END
    AND previous_root_key IS DISTINCT FROM root_key),
  CONSTRAINT device_log_heads UNIQUE (user_id, version, entry_hash, root_key),
  CONSTRAINT device_log_additions UNIQUE (user_id, version, device_id, added_at),
  CONSTRAINT device_log_revocations UNIQUE (user_id, version, device_id, revoked_at),
  CONSTRAINT device_log_certificates
    UNIQUE (user_id, version, device_id, identity_key, signing_key, root_key, certified_at, certificate_signature)
);

-- A revocation gets its number under a lock that is held until its commit: a number becomes visible only after all lower ones.
CREATE TABLE revocations (
  number           bigint      NOT NULL PRIMARY KEY,
  user_id          text        NOT NULL,
  device_id        text        NOT NULL,
  version          bigint      NOT NULL,
  revoked_at       timestamptz NOT NULL,
  removed_one_time integer     NOT NULL CHECK (removed_one_time >= 0),
  removed_kem      integer     NOT NULL CHECK (removed_kem >= 0),
  CONSTRAINT revocations_once_per_device UNIQUE (user_id, device_id),
  CONSTRAINT revocations_of_a_version UNIQUE (user_id, version, device_id)
);
CREATE SEQUENCE revocation_numbers OWNED BY revocations.number;
CREATE FUNCTION number_revocation() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_advisory_xact_lock(hashtextextended('revocations', 0));
  NEW.number := nextval('revocation_numbers');
  RETURN NEW;
END $$;
CREATE TRIGGER revocations_numbered BEFORE INSERT ON revocations FOR EACH ROW EXECUTE FUNCTION number_revocation();

-- What there is already: each device was added in its version; whatever was revoked comes after, as an operator's doing.
ALTER TABLE devices ADD COLUMN certified_in_version bigint, ADD COLUMN revoked_in_version bigint;
INSERT INTO root_keys (user_id, root_key, since_version) SELECT user_id, root_key, 1 FROM users WHERE device_list_version > 0;
DO $$
DECLARE
  change record;
  head bytea;
BEGIN
  FOR change IN
    SELECT d.*, c.kind, c.at,
           row_number() OVER (PARTITION BY d.user_id
                              ORDER BY c.kind, CASE c.kind WHEN 1 THEN d.added_in_version END, c.at, d.added_in_version) AS version
      FROM devices d CROSS JOIN LATERAL (VALUES (1, d.added_at), (2, d.revoked_at)) AS c (kind, at)
     WHERE c.at IS NOT NULL
     ORDER BY d.user_id, version
  LOOP
    INSERT INTO device_log (user_id, version, kind, previous_hash, recorded_at, root_key, device_id, identity_key, signing_key,
                            certified_at, certificate_signature, revoked_by)
    VALUES (change.user_id, change.version, change.kind,
            CASE change.version WHEN 1 THEN decode(repeat('00', 32), 'hex') ELSE head END,
            change.at, change.certificate_root_key, change.device_id, change.identity_key, change.signing_key,
            CASE change.kind WHEN 1 THEN change.certified_at END, CASE change.kind WHEN 1 THEN change.certificate_signature END,
            CASE change.kind WHEN 2 THEN 2 END)
    RETURNING entry_hash INTO head;
    IF change.kind = 2 THEN
      INSERT INTO revocations (user_id, device_id, version, revoked_at, removed_one_time, removed_kem)
      VALUES (change.user_id, change.device_id, change.version, change.at, 0, 0);
    END IF;
  END LOOP;
END $$;
UPDATE devices d SET certified_in_version = added_in_version,
  revoked_in_version = (SELECT version FROM revocations r WHERE r.user_id = d.user_id AND r.device_id = d.device_id);
UPDATE users u SET device_list_version = newest.version, log_head = newest.entry_hash
  FROM (SELECT DISTINCT ON (user_id) user_id, version, entry_hash FROM device_log ORDER BY user_id, version DESC) AS newest
 WHERE newest.user_id = u.user_id;
DELETE FROM unclaimed_one_time_prekeys WHERE device_number IN (SELECT device_number FROM devices WHERE revoked_at IS NOT NULL);
DELETE FROM unclaimed_one_time_kem_prekeys WHERE device_number IN (SELECT device_number FROM devices WHERE revoked_at IS NOT NULL);
SET CONSTRAINTS ALL IMMEDIATE;

-- An entry names the hash of the one before, and the root key goes on from it.
ALTER TABLE device_log
  ADD CONSTRAINT device_log_chained FOREIGN KEY (user_id, previous_version, previous_hash, root_key_before)
    REFERENCES device_log (user_id, version, entry_hash, root_key),
  ADD CONSTRAINT device_log_root_key_of_user FOREIGN KEY (user_id, root_key) REFERENCES root_keys (user_id, root_key);
ALTER TABLE root_keys
  ADD CONSTRAINT root_keys_since_an_entry FOREIGN KEY (user_id, since_version) REFERENCES device_log (user_id, version)
    DEFERRABLE INITIALLY DEFERRED;

-- A user's version, log head and root key are those of the newest entry: an entry takes them along, and they never go back.
CREATE FUNCTION advance_device_list() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  UPDATE users SET device_list_version = NEW.version, log_head = NEW.entry_hash, root_key = NEW.root_key
   WHERE user_id = NEW.user_id AND device_list_version = NEW.version - 1;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'version % does not follow the newest entry', NEW.version
      USING ERRCODE = 'check_violation', CONSTRAINT = 'device_log_without_gaps', TABLE = TG_TABLE_NAME;
  END IF;
  RETURN NULL;
END $$;
CREATE TRIGGER device_log_without_gaps AFTER INSERT ON device_log FOR EACH ROW EXECUTE FUNCTION advance_device_list();
CREATE FUNCTION refuse_older_device_list() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'a device list does not go back'
    USING ERRCODE = 'check_violation', CONSTRAINT = 'users_name_the_newest_entry', TABLE = TG_TABLE_NAME;
END $$;
CREATE TRIGGER users_name_the_newest_entry BEFORE UPDATE ON users FOR EACH ROW
  WHEN (NEW.device_list_version < OLD.device_list_version AND NEW.erased_at IS NULL) EXECUTE FUNCTION refuse_older_device_list();
ALTER TABLE users
  ADD CONSTRAINT users_have_a_log_head CHECK ((device_list_version = 0) = (log_head IS NULL)),
  ADD CONSTRAINT users_name_an_entry FOREIGN KEY (user_id, device_list_version, log_head, root_key)
    REFERENCES device_log (user_id, version, entry_hash, root_key) DEFERRABLE INITIALLY DEFERRED;

-- A device is as the entries say that added it, certified it last and revoked it; while it is not revoked, the user's present root key
-- certifies it.
ALTER TABLE devices
  DROP CONSTRAINT devices_certified_by_root_key,
  ALTER COLUMN certified_in_version SET NOT NULL,
  ADD COLUMN active_root_key bytea GENERATED ALWAYS AS (CASE WHEN revoked_at IS NULL THEN certificate_root_key END) STORED,
  ADD CONSTRAINT devices_revoked_in_a_version CHECK ((revoked_at IS NULL) = (revoked_in_version IS NULL));
ALTER TABLE devices
  ADD CONSTRAINT devices_added_by_an_entry FOREIGN KEY (user_id, added_in_version, device_id, added_at)
    REFERENCES device_log (user_id, version, device_id, added_at),
  ADD CONSTRAINT devices_certified_by_an_entry
    FOREIGN KEY (user_id, certified_in_version, device_id, identity_key, signing_key, certificate_root_key, certified_at, certificate_signature)
    REFERENCES device_log (user_id, version, device_id, identity_key, signing_key, root_key, certified_at, certificate_signature),
  ADD CONSTRAINT devices_revoked_by_an_entry FOREIGN KEY (user_id, revoked_in_version, device_id, revoked_at)
    REFERENCES device_log (user_id, version, device_id, revoked_at),
  ADD CONSTRAINT devices_revoked_with_a_number FOREIGN KEY (user_id, revoked_in_version, device_id)
    REFERENCES revocations (user_id, version, device_id),
  ADD CONSTRAINT devices_certified_by_root_key FOREIGN KEY (user_id, active_root_key) REFERENCES users (user_id, root_key)
    DEFERRABLE INITIALLY DEFERRED;

-- A revocation is for good.
CREATE FUNCTION refuse_return_of_device() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'a revoked device does not come back'
    USING ERRCODE = 'check_violation', CONSTRAINT = 'devices_stay_revoked', TABLE = TG_TABLE_NAME;
END $$;
CREATE TRIGGER devices_stay_revoked BEFORE UPDATE ON devices FOR EACH ROW
  WHEN (OLD.revoked_at IS NOT NULL AND NEW.revoked_at IS DISTINCT FROM OLD.revoked_at) EXECUTE FUNCTION refuse_return_of_device();

-- The user's root key, sealed by a recovery key that only the user has; for the present root key alone.
CREATE TABLE recoveries (
  user_id         text        NOT NULL PRIMARY KEY,
  root_key        bytea       NOT NULL,
  sealed_root_key bytea       NOT NULL CHECK (octet_length(sealed_root_key) BETWEEN 48 AND 256),
  updated_at      timestamptz NOT NULL CHECK (updated_at = date_trunc('milliseconds', updated_at)),
  CONSTRAINT recoveries_of_the_present_root_key FOREIGN KEY (user_id, root_key) REFERENCES users (user_id, root_key)
    DEFERRABLE INITIALLY DEFERRED
);

-- What operators did. A row about nobody in particular has no user.
CREATE TABLE audit_log (
  number      bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  operator    text        NOT NULL CHECK (operator <> ''),
  action      text        NOT NULL CHECK (action ~ '^[a-z_]+$'),
  user_id     text,
  device_id   text,
  note        text        NOT NULL CHECK (char_length(note) BETWEEN 1 AND 500),
  trace_id    text        NOT NULL CHECK (trace_id ~ '^([0-9a-f]{32})?$'),
  happened_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- What was recorded stays as it is. Only the rows of a user who is being erased (users.erased_at) may be deleted; the audit log's never.
CREATE FUNCTION refuse_change_of_record() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP = 'DELETE' AND TG_TABLE_NAME <> 'audit_log' THEN
    IF EXISTS (SELECT FROM users WHERE user_id = OLD.user_id AND erased_at IS NOT NULL) THEN RETURN OLD; END IF;
  END IF;
  RAISE EXCEPTION 'what was recorded stays'
    USING ERRCODE = 'check_violation', CONSTRAINT = TG_NAME, TABLE = TG_TABLE_NAME;
END $$;
CREATE TRIGGER device_log_only_grows BEFORE UPDATE OR DELETE ON device_log FOR EACH ROW EXECUTE FUNCTION refuse_change_of_record();
CREATE TRIGGER root_keys_only_grow BEFORE UPDATE OR DELETE ON root_keys FOR EACH ROW EXECUTE FUNCTION refuse_change_of_record();
CREATE TRIGGER revocations_only_grow BEFORE UPDATE OR DELETE ON revocations FOR EACH ROW EXECUTE FUNCTION refuse_change_of_record();
CREATE TRIGGER audit_log_only_grows BEFORE UPDATE OR DELETE ON audit_log FOR EACH ROW EXECUTE FUNCTION refuse_change_of_record();

-- A build that does not write the log cannot write devices.
UPDATE schema_floor SET migration = '20261123010000_device_logs';
