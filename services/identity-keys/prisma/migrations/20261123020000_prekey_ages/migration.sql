-- The life of a prekey: since when it is there, whether it was replaced or retired, and what is left of it when nobody can need its
-- bytes any more. docs/decisions/0020-prekey-life.md has the reasons.

-- A one-time prekey that was claimed or retired keeps its SHA-256 for ever, its bytes only for as long as a claim can be repeated.
-- added_in is the transaction that added it: the only one in which it can enter the pool.
ALTER TABLE one_time_prekeys
  ALTER COLUMN public_key DROP NOT NULL,
  ADD COLUMN public_key_digest bytea CHECK (octet_length(public_key_digest) = 32),
  ADD COLUMN retired boolean NOT NULL DEFAULT false,
  ADD COLUMN added_in xid8 NOT NULL DEFAULT '0',
  ADD CONSTRAINT one_time_prekeys_key_or_digest CHECK ((public_key IS NULL) <> (public_key_digest IS NULL));
ALTER TABLE one_time_prekeys ALTER COLUMN added_in SET DEFAULT pg_current_xact_id();

ALTER TABLE one_time_kem_prekeys
  ALTER COLUMN public_key DROP NOT NULL,
  ALTER COLUMN signature DROP NOT NULL,
  ADD COLUMN public_key_digest bytea CHECK (octet_length(public_key_digest) = 32),
  ADD COLUMN retired boolean NOT NULL DEFAULT false,
  ADD COLUMN added_in xid8 NOT NULL DEFAULT '0',
  ADD CONSTRAINT one_time_kem_prekeys_key_or_digest
    CHECK ((public_key IS NULL) <> (public_key_digest IS NULL) AND (public_key IS NULL) = (signature IS NULL));
ALTER TABLE one_time_kem_prekeys ALTER COLUMN added_in SET DEFAULT pg_current_xact_id();

ALTER TABLE signed_prekeys
  ALTER COLUMN public_key DROP NOT NULL,
  ALTER COLUMN signature DROP NOT NULL,
  ADD COLUMN public_key_digest bytea CHECK (octet_length(public_key_digest) = 32),
  ADD COLUMN replaced_at timestamptz CHECK (replaced_at >= added_at),
  ADD CONSTRAINT signed_prekeys_key_or_digest
    CHECK ((public_key IS NULL) <> (public_key_digest IS NULL) AND (public_key IS NULL) = (signature IS NULL)),
  ADD CONSTRAINT signed_prekeys_keep_what_is_current CHECK (public_key IS NOT NULL OR replaced_at IS NOT NULL);

ALTER TABLE last_resort_prekeys
  ALTER COLUMN public_key DROP NOT NULL,
  ALTER COLUMN signature DROP NOT NULL,
  ADD COLUMN public_key_digest bytea CHECK (octet_length(public_key_digest) = 32),
  ADD COLUMN replaced_at timestamptz CHECK (replaced_at >= added_at),
  ADD COLUMN handed_out_at timestamptz,
  ADD CONSTRAINT last_resort_prekeys_key_or_digest
    CHECK ((public_key IS NULL) <> (public_key_digest IS NULL) AND (public_key IS NULL) = (signature IS NULL)),
  ADD CONSTRAINT last_resort_prekeys_keep_what_is_current CHECK (public_key IS NOT NULL OR replaced_at IS NOT NULL);

-- What is to be shrunk, and nothing else, stands in these two.
CREATE INDEX signed_prekeys_replaced ON signed_prekeys (replaced_at) WHERE replaced_at IS NOT NULL AND public_key IS NOT NULL;
CREATE INDEX last_resort_prekeys_replaced ON last_resort_prekeys (replaced_at) WHERE replaced_at IS NOT NULL AND public_key IS NOT NULL;

-- Of keys that are in the pools already nobody knows when they came: their age counts from here.
ALTER TABLE unclaimed_one_time_prekeys ADD COLUMN added_at timestamptz NOT NULL DEFAULT now();
ALTER TABLE unclaimed_one_time_kem_prekeys ADD COLUMN added_at timestamptz NOT NULL DEFAULT now();

ALTER TABLE devices
  ADD COLUMN one_time_prekeys_retired bigint NOT NULL DEFAULT 0 CHECK (one_time_prekeys_retired >= 0),
  ADD COLUMN kem_prekeys_retired bigint NOT NULL DEFAULT 0 CHECK (kem_prekeys_retired >= 0);

CREATE INDEX low_prekey_notices_by_time ON low_prekey_notices (noticed_at);

-- Where the sweep over all devices stands; whoever holds the row does the next page.
CREATE TABLE prekey_sweep (
  one                 boolean NOT NULL PRIMARY KEY DEFAULT true CHECK (one),
  after_device_number bigint  NOT NULL DEFAULT 0
);
INSERT INTO prekey_sweep DEFAULT VALUES;

-- A prekey enters its pool in the transaction that adds it, once. LIMIT 1 and OFFSET 0 keep the planner from joining whole tables.
CREATE FUNCTION one_time_prekeys_enter_once() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF EXISTS (SELECT FROM entered e
               LEFT JOIN LATERAL (SELECT added_in FROM one_time_prekeys k
                                   WHERE k.device_number = e.device_number AND k.key_id = e.key_id LIMIT 1) k ON true
              WHERE k.added_in IS DISTINCT FROM pg_current_xact_id())
  OR EXISTS (SELECT FROM (SELECT DISTINCT device_number FROM entered) e
              CROSS JOIN LATERAL (SELECT count(*) > count(DISTINCT p.key_id) AS twice FROM unclaimed_one_time_prekeys p
                                   WHERE p.device_number = e.device_number OFFSET 0) p
              WHERE p.twice) THEN
    RAISE EXCEPTION 'a prekey enters its pool once, when it is added'
      USING ERRCODE = 'check_violation', CONSTRAINT = 'one_time_prekeys_enter_once', TABLE = TG_TABLE_NAME;
  END IF;
  RETURN NULL;
END $$;
CREATE TRIGGER one_time_prekeys_enter_once AFTER INSERT ON unclaimed_one_time_prekeys
  REFERENCING NEW TABLE AS entered FOR EACH STATEMENT EXECUTE FUNCTION one_time_prekeys_enter_once();

CREATE FUNCTION kem_prekeys_enter_once() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF EXISTS (SELECT FROM entered e
               LEFT JOIN LATERAL (SELECT added_in FROM one_time_kem_prekeys k
                                   WHERE k.device_number = e.device_number AND k.key_id = e.key_id LIMIT 1) k ON true
              WHERE k.added_in IS DISTINCT FROM pg_current_xact_id())
  OR EXISTS (SELECT FROM (SELECT DISTINCT device_number FROM entered) e
              CROSS JOIN LATERAL (SELECT count(*) > count(DISTINCT p.key_id) AS twice FROM unclaimed_one_time_kem_prekeys p
                                   WHERE p.device_number = e.device_number OFFSET 0) p
              WHERE p.twice) THEN
    RAISE EXCEPTION 'a prekey enters its pool once, when it is added'
      USING ERRCODE = 'check_violation', CONSTRAINT = 'kem_prekeys_enter_once', TABLE = TG_TABLE_NAME;
  END IF;
  RETURN NULL;
END $$;
CREATE TRIGGER kem_prekeys_enter_once AFTER INSERT ON unclaimed_one_time_kem_prekeys
  REFERENCING NEW TABLE AS entered FOR EACH STATEMENT EXECUTE FUNCTION kem_prekeys_enter_once();

-- Rows of a pool come and go; they never become those of another key.
CREATE FUNCTION unclaimed_prekeys_never_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF (NEW.device_number, NEW.seq, NEW.key_id) IS DISTINCT FROM (OLD.device_number, OLD.seq, OLD.key_id) THEN
    RAISE EXCEPTION 'an unclaimed prekey is claimed or retired, never changed'
      USING ERRCODE = 'check_violation', CONSTRAINT = 'unclaimed_prekeys_never_change', TABLE = TG_TABLE_NAME;
  END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER unclaimed_prekeys_never_change BEFORE UPDATE ON unclaimed_one_time_prekeys
  FOR EACH ROW EXECUTE FUNCTION unclaimed_prekeys_never_change();
CREATE TRIGGER unclaimed_prekeys_never_change BEFORE UPDATE ON unclaimed_one_time_kem_prekeys
  FOR EACH ROW EXECUTE FUNCTION unclaimed_prekeys_never_change();

-- A stored prekey changes in one way: its bytes become their SHA-256. While it is in the pool it does not even do that. After the
-- statement, because the one that retires a prekey takes it out of the pool too.
CREATE FUNCTION one_time_prekeys_only_shrink() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF (NEW.device_number, NEW.key_id, NEW.added_in) IS DISTINCT FROM (OLD.device_number, OLD.key_id, OLD.added_in)
  OR OLD.retired AND NOT NEW.retired
  OR coalesce(NEW.public_key_digest, sha256(NEW.public_key)) IS DISTINCT FROM coalesce(OLD.public_key_digest, sha256(OLD.public_key))
  OR OLD.public_key IS NULL AND NEW.public_key IS NOT NULL
  OR (NEW.public_key IS NULL OR NEW.retired) AND EXISTS (
       SELECT FROM unclaimed_one_time_prekeys p WHERE p.device_number = NEW.device_number AND p.key_id = NEW.key_id OFFSET 0) THEN
    RAISE EXCEPTION 'a stored prekey only shrinks, and only when it has left the pool'
      USING ERRCODE = 'check_violation', CONSTRAINT = 'one_time_prekeys_only_shrink', TABLE = TG_TABLE_NAME;
  END IF;
  RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER one_time_prekeys_only_shrink AFTER UPDATE ON one_time_prekeys
  FOR EACH ROW EXECUTE FUNCTION one_time_prekeys_only_shrink();

CREATE FUNCTION kem_prekeys_only_shrink() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF (NEW.device_number, NEW.key_id, NEW.added_in) IS DISTINCT FROM (OLD.device_number, OLD.key_id, OLD.added_in)
  OR OLD.retired AND NOT NEW.retired
  OR coalesce(NEW.public_key_digest, sha256(NEW.public_key)) IS DISTINCT FROM coalesce(OLD.public_key_digest, sha256(OLD.public_key))
  OR OLD.public_key IS NULL AND NEW.public_key IS NOT NULL
  OR NEW.signature IS NOT NULL AND NEW.signature IS DISTINCT FROM OLD.signature
  OR (NEW.public_key IS NULL OR NEW.retired) AND EXISTS (
       SELECT FROM unclaimed_one_time_kem_prekeys p WHERE p.device_number = NEW.device_number AND p.key_id = NEW.key_id OFFSET 0) THEN
    RAISE EXCEPTION 'a stored prekey only shrinks, and only when it has left the pool'
      USING ERRCODE = 'check_violation', CONSTRAINT = 'kem_prekeys_only_shrink', TABLE = TG_TABLE_NAME;
  END IF;
  RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER kem_prekeys_only_shrink AFTER UPDATE ON one_time_kem_prekeys
  FOR EACH ROW EXECUTE FUNCTION kem_prekeys_only_shrink();

-- A prekey that stops being current is marked as replaced, by whatever statement; one that was replaced never becomes current again.
CREATE FUNCTION devices_replace_signed_prekeys() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  replaced timestamptz;
BEGIN
  SELECT replaced_at INTO replaced FROM signed_prekeys WHERE device_number = NEW.device_number AND key_id = NEW.current_signed_prekey_id FOR SHARE;
  IF replaced IS NOT NULL THEN
    RAISE EXCEPTION 'a signed prekey that was replaced is current no more'
      USING ERRCODE = 'check_violation', CONSTRAINT = 'devices_never_go_back_to_a_signed_prekey', TABLE = TG_TABLE_NAME;
  END IF;
  UPDATE signed_prekeys SET replaced_at = greatest(now(), added_at)
   WHERE device_number = OLD.device_number AND key_id = OLD.current_signed_prekey_id;
  RETURN NULL;
END $$;
CREATE TRIGGER devices_replace_signed_prekeys AFTER UPDATE OF current_signed_prekey_id ON devices
  FOR EACH ROW WHEN (OLD.current_signed_prekey_id <> NEW.current_signed_prekey_id) EXECUTE FUNCTION devices_replace_signed_prekeys();

CREATE FUNCTION devices_replace_last_resort_prekeys() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  replaced timestamptz;
BEGIN
  SELECT replaced_at INTO replaced FROM last_resort_prekeys WHERE device_number = NEW.device_number AND key_id = NEW.current_last_resort_prekey_id FOR SHARE;
  IF replaced IS NOT NULL THEN
    RAISE EXCEPTION 'a last-resort prekey that was replaced is current no more'
      USING ERRCODE = 'check_violation', CONSTRAINT = 'devices_never_go_back_to_a_last_resort_prekey', TABLE = TG_TABLE_NAME;
  END IF;
  UPDATE last_resort_prekeys SET replaced_at = greatest(now(), added_at)
   WHERE device_number = OLD.device_number AND key_id = OLD.current_last_resort_prekey_id;
  RETURN NULL;
END $$;
CREATE TRIGGER devices_replace_last_resort_prekeys AFTER UPDATE OF current_last_resort_prekey_id ON devices
  FOR EACH ROW WHEN (OLD.current_last_resort_prekey_id <> NEW.current_last_resort_prekey_id) EXECUTE FUNCTION devices_replace_last_resort_prekeys();

-- Both kinds: a stored one changes by being replaced, handed out, and shrunk, and the current one is not replaced.
CREATE FUNCTION signed_prekeys_only_shrink() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF (NEW.device_number, NEW.key_id) IS DISTINCT FROM (OLD.device_number, OLD.key_id)
  OR OLD.replaced_at IS NOT NULL AND NEW.replaced_at IS NULL
  OR coalesce(NEW.public_key_digest, sha256(NEW.public_key)) IS DISTINCT FROM coalesce(OLD.public_key_digest, sha256(OLD.public_key))
  OR OLD.public_key IS NULL AND NEW.public_key IS NOT NULL
  OR NEW.signature IS NOT NULL AND NEW.signature IS DISTINCT FROM OLD.signature
  OR NEW.replaced_at IS NOT NULL AND EXISTS (
       SELECT FROM devices WHERE device_number = NEW.device_number AND current_signed_prekey_id = NEW.key_id FOR SHARE) THEN
    RAISE EXCEPTION 'a stored prekey only shrinks, and only when it has been replaced'
      USING ERRCODE = 'check_violation', CONSTRAINT = 'signed_prekeys_only_shrink', TABLE = TG_TABLE_NAME;
  END IF;
  RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER signed_prekeys_only_shrink AFTER UPDATE ON signed_prekeys
  FOR EACH ROW EXECUTE FUNCTION signed_prekeys_only_shrink();

CREATE FUNCTION last_resort_prekeys_only_shrink() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF (NEW.device_number, NEW.key_id) IS DISTINCT FROM (OLD.device_number, OLD.key_id)
  OR OLD.replaced_at IS NOT NULL AND NEW.replaced_at IS NULL
  OR coalesce(NEW.public_key_digest, sha256(NEW.public_key)) IS DISTINCT FROM coalesce(OLD.public_key_digest, sha256(OLD.public_key))
  OR OLD.public_key IS NULL AND NEW.public_key IS NOT NULL
  OR NEW.signature IS NOT NULL AND NEW.signature IS DISTINCT FROM OLD.signature
  OR NEW.replaced_at IS NOT NULL AND EXISTS (
       SELECT FROM devices WHERE device_number = NEW.device_number AND current_last_resort_prekey_id = NEW.key_id FOR SHARE) THEN
    RAISE EXCEPTION 'a stored prekey only shrinks, and only when it has been replaced'
      USING ERRCODE = 'check_violation', CONSTRAINT = 'last_resort_prekeys_only_shrink', TABLE = TG_TABLE_NAME;
  END IF;
  RETURN NULL;
END $$;
-- Not when it is only marked as handed out: that is on the way of claims.
CREATE CONSTRAINT TRIGGER last_resort_prekeys_only_shrink AFTER UPDATE OF device_number, key_id, public_key, public_key_digest, signature, replaced_at
  ON last_resort_prekeys FOR EACH ROW EXECUTE FUNCTION last_resort_prekeys_only_shrink();

-- One id names one KEM prekey, a one-time or a last-resort one. Both sides hold the device, so that the later one sees the earlier.
CREATE FUNCTION last_resort_prekey_ids_are_their_own() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM FROM devices WHERE device_number = NEW.device_number FOR NO KEY UPDATE;
  IF EXISTS (SELECT FROM one_time_kem_prekeys WHERE device_number = NEW.device_number AND key_id = NEW.key_id) THEN
    RAISE EXCEPTION 'the id names a one-time KEM prekey'
      USING ERRCODE = 'check_violation', CONSTRAINT = 'kem_prekey_ids_name_one_kind', TABLE = TG_TABLE_NAME;
  END IF;
  RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER kem_prekey_ids_name_one_kind AFTER INSERT ON last_resort_prekeys
  FOR EACH ROW EXECUTE FUNCTION last_resort_prekey_ids_are_their_own();

CREATE FUNCTION one_time_kem_prekey_ids_are_their_own() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM FROM devices WHERE device_number IN (SELECT device_number FROM entered) ORDER BY device_number FOR NO KEY UPDATE;
  IF EXISTS (SELECT FROM (SELECT DISTINCT device_number FROM entered) d
              CROSS JOIN LATERAL (SELECT key_id FROM last_resort_prekeys l WHERE l.device_number = d.device_number OFFSET 0) l
               JOIN entered e ON e.device_number = d.device_number AND e.key_id = l.key_id) THEN
    RAISE EXCEPTION 'the id names a last-resort prekey'
      USING ERRCODE = 'check_violation', CONSTRAINT = 'kem_prekey_ids_name_one_kind', TABLE = TG_TABLE_NAME;
  END IF;
  RETURN NULL;
END $$;
CREATE TRIGGER kem_prekey_ids_name_one_kind AFTER INSERT ON one_time_kem_prekeys
  REFERENCING NEW TABLE AS entered FOR EACH STATEMENT EXECUTE FUNCTION one_time_kem_prekey_ids_are_their_own();

-- A claim that handed a last-resort prekey out marks it, the first time. It never waits for a row that somebody else holds: who holds
-- it marks it too, or replaces it.
CREATE FUNCTION claims_mark_last_resort_prekeys() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  UPDATE last_resort_prekeys l SET handed_out_at = NEW.claimed_at
    FROM (SELECT p.device_number, p.key_id
            FROM unnest(NEW.device_numbers, NEW.last_resort_prekey_ids) AS c (device_number, key_id)
           CROSS JOIN LATERAL (SELECT q.device_number, q.key_id FROM last_resort_prekeys q
                                WHERE q.device_number = c.device_number AND q.key_id = c.key_id AND q.handed_out_at IS NULL
                                LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED) p) marked
   WHERE l.device_number = marked.device_number AND l.key_id = marked.key_id;
  RETURN NULL;
END $$;
CREATE TRIGGER claims_mark_last_resort_prekeys AFTER INSERT ON claims
  FOR EACH ROW WHEN (array_remove(NEW.last_resort_prekey_ids, NULL) <> '{}') EXECUTE FUNCTION claims_mark_last_resort_prekeys();

-- KEM keys are random: they do not compress. A row of 1.3 kB stays in line, six of them in a page; PLAIN says so for good.
ALTER TABLE one_time_kem_prekeys ALTER COLUMN public_key SET STORAGE PLAIN;
ALTER TABLE last_resort_prekeys ALTER COLUMN public_key SET STORAGE PLAIN;

-- Deleted from as fast as written. A claim walks over what was deleted at the head of a pool, so dead rows are kept to a few in a
-- hundred; a vacuum reads the whole index, so it comes in proportion and not by the row; it is not slowed down, as it could not keep up.
ALTER TABLE unclaimed_one_time_prekeys SET (autovacuum_vacuum_scale_factor = 0.03, autovacuum_vacuum_threshold = 2000,
  autovacuum_vacuum_insert_scale_factor = 0.1, autovacuum_analyze_scale_factor = 0.1, autovacuum_vacuum_cost_limit = 2000);
ALTER TABLE unclaimed_one_time_kem_prekeys SET (autovacuum_vacuum_scale_factor = 0.03, autovacuum_vacuum_threshold = 2000,
  autovacuum_vacuum_insert_scale_factor = 0.1, autovacuum_analyze_scale_factor = 0.1, autovacuum_vacuum_cost_limit = 2000);
-- Emptied as it is filled: its size is what vacuum leaves.
ALTER TABLE outbox SET (autovacuum_vacuum_cost_limit = 2000, autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 10000);
-- Seven days' worth, of which the oldest hours go at once: at a fiftieth a table does not grow beyond that by more.
ALTER TABLE claims SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_insert_scale_factor = 0.1,
  autovacuum_vacuum_cost_limit = 2000);
ALTER TABLE request_ids SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_limit = 2000);
-- Shrinking leaves the 1.3 kB of each key behind as a dead row, for the next uploads to fill.
ALTER TABLE one_time_kem_prekeys SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_limit = 2000);
ALTER TABLE one_time_prekeys SET (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 2000);
-- A few rows, updated over and over.
ALTER TABLE low_prekey_notices SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
