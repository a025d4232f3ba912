-- The log of each conversation's roster: what members signed, chained by hashes; roles by permissions; and a history policy that each epoch has for itself.

-- Who may do what: 1 for admins alone, 2 for every member.
ALTER TABLE conversations
  ADD COLUMN may_add smallint NOT NULL DEFAULT 1 CHECK (may_add IN (1, 2)),
  ADD COLUMN may_remove smallint NOT NULL DEFAULT 1 CHECK (may_remove IN (1, 2)),
  ADD COLUMN may_change_policy smallint NOT NULL DEFAULT 1 CHECK (may_change_policy IN (1, 2)),
  ADD COLUMN roster_head bytea CHECK (octet_length(roster_head) = 32);

-- A policy that changes is for the epochs to come: who was a member counts under the policy that an epoch's own header names.
ALTER TABLE epochs
  ADD COLUMN history_policy smallint CHECK (history_policy IN (1, 2)),
  -- Whether the epoch before has another one: few epochs tell all of a conversation's.
  ADD COLUMN begins_policy boolean NOT NULL DEFAULT false;
ALTER TABLE epochs DISABLE TRIGGER epochs_immutable;
UPDATE epochs e SET history_policy = c.history_policy, begins_policy = (e.epoch = 1)
  FROM conversations c WHERE c.conversation_id = e.conversation_id;
ALTER TABLE epochs ENABLE TRIGGER epochs_immutable;
ALTER TABLE epochs ALTER COLUMN history_policy SET NOT NULL;
CREATE INDEX epochs_beginning_policies ON epochs (conversation_id, epoch) WHERE begins_policy;
CREATE FUNCTION note_policy_of_epoch() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  NEW.begins_policy := NOT EXISTS (
    SELECT FROM epochs
    WHERE conversation_id = NEW.conversation_id AND epoch = NEW.epoch - 1 AND history_policy = NEW.history_policy);
  RETURN NEW;
END $$;
CREATE TRIGGER epochs_policy BEFORE INSERT ON epochs FOR EACH ROW EXECUTE FUNCTION note_policy_of_epoch();

-- The parts of a hashed text, "transcript" in docs/wire-formats.md. Their bodies are bound when they are made, so that a restore, which has
-- an empty search path, finds them.
CREATE FUNCTION transcript_part(part bytea) RETURNS bytea LANGUAGE sql IMMUTABLE PARALLEL SAFE
  RETURN int4send(octet_length(coalesce(part, ''))) || coalesce(part, '');
CREATE FUNCTION transcript_part(part text) RETURNS bytea LANGUAGE sql IMMUTABLE PARALLEL SAFE
  RETURN transcript_part(convert_to(coalesce(part, ''), 'UTF8'));
CREATE FUNCTION transcript_part(part bigint) RETURNS bytea LANGUAGE sql IMMUTABLE PARALLEL SAFE
  RETURN transcript_part(int8send(part));

-- One row for each version of a roster: a change that a member signed; a user who was erased; or, as the first one, what the roster was when logs
-- began. Nobody computes a hash but the database itself ("roster log" in docs/wire-formats.md).
CREATE TABLE roster_log (
  conversation_id       uuid        NOT NULL REFERENCES conversations (conversation_id),
  roster_version        bigint      NOT NULL CHECK (roster_version >= 1),
  previous_version      bigint,
  previous_hash         bytea       NOT NULL,
  change                bytea       CHECK (octet_length(change) BETWEEN 1 AND 262144),
  signature             bytea       CHECK (octet_length(signature) = 64),
  author_user_id        text        COLLATE "C" CHECK (author_user_id ~ '^[A-Za-z0-9._:@-]{1,128}$'),
  author_device_id      text        COLLATE "C",
  author_identity_key   bytea       CHECK (octet_length(author_identity_key) = 32),
  author_signing_key    bytea       CHECK (octet_length(author_signing_key) = 32),
  certificate_root_key  bytea       CHECK (octet_length(certificate_root_key) = 32),
  certified_at          timestamptz,
  certificate_signature bytea       CHECK (octet_length(certificate_signature) = 64),
  erased_user_id        text        COLLATE "C" CHECK (erased_user_id ~ '^[A-Za-z0-9._:@-]{1,128}$'),
  base                  bytea       CHECK (octet_length(base) > 0),
  recorded_at           timestamptz NOT NULL DEFAULT now(),
  writer_build          text        NOT NULL CHECK (writer_build <> ''),
  trace_id              text        NOT NULL,

  entry_hash            bytea       GENERATED ALWAYS AS (sha256(
      transcript_part('keytrail/v1/roster-entry'::text)
      || transcript_part(previous_hash)
      || transcript_part(conversation_id::text)
      || transcript_part(roster_version)
      || transcript_part(change)
      || transcript_part(signature)
      || transcript_part(erased_user_id)
      || transcript_part(base))) STORED,

  PRIMARY KEY (conversation_id, roster_version),
  CONSTRAINT roster_log_heads UNIQUE (conversation_id, roster_version, entry_hash),
  CONSTRAINT roster_log_of_one_kind CHECK (num_nonnulls(change, erased_user_id, base) = 1),
  CONSTRAINT roster_log_changes_are_signed CHECK (
    num_nonnulls(change, signature, author_user_id, author_device_id, author_identity_key, author_signing_key,
                 certificate_root_key, certified_at, certificate_signature) = CASE WHEN change IS NULL THEN 0 ELSE 9 END),
  CONSTRAINT roster_log_begins CHECK (
    CASE WHEN previous_version IS NULL
      THEN octet_length(previous_hash) = 0 AND (base IS NOT NULL OR change IS NOT NULL AND roster_version = 1)
      ELSE octet_length(previous_hash) = 32 AND base IS NULL AND previous_version = roster_version - 1
    END)
);

-- What there is already begins with the roster that it has, which nobody signed.
INSERT INTO roster_log (conversation_id, roster_version, previous_hash, base, writer_build, trace_id)
SELECT c.conversation_id, c.roster_version, '',
       transcript_part('keytrail/v1/roster-base'::text)
         || transcript_part(1::bigint) || transcript_part(1::bigint) || transcript_part(1::bigint)
         || transcript_part(c.history_policy::bigint) || transcript_part(coalesce(m.members, 0))
         || coalesce(m.roster, ''),
       'migration', ''
  FROM conversations c LEFT JOIN LATERAL (
    SELECT count(*) AS members,
           string_agg(transcript_part(user_id) || transcript_part(role::bigint), ''::bytea ORDER BY user_id) AS roster
      FROM memberships WHERE conversation_id = c.conversation_id AND to_epoch IS NULL) m ON true;
UPDATE conversations c SET roster_head = l.entry_hash FROM roster_log l WHERE l.conversation_id = c.conversation_id;
SET CONSTRAINTS ALL IMMEDIATE;

-- An entry names the hash of the one before, is the newest version's, and stays as it is.
ALTER TABLE roster_log ADD CONSTRAINT roster_log_chained FOREIGN KEY (conversation_id, previous_version, previous_hash)
  REFERENCES roster_log (conversation_id, roster_version, entry_hash);
CREATE FUNCTION advance_roster_head() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  UPDATE conversations SET roster_head = NEW.entry_hash
   WHERE conversation_id = NEW.conversation_id AND roster_version = NEW.roster_version;
  IF NOT FOUND OR NEW.previous_version IS NULL AND EXISTS (
    SELECT FROM roster_log WHERE conversation_id = NEW.conversation_id AND roster_version <> NEW.roster_version) THEN
    RAISE EXCEPTION 'version % of the roster is not the newest one', NEW.roster_version
      USING ERRCODE = 'check_violation', CONSTRAINT = 'roster_log_without_gaps', TABLE = TG_TABLE_NAME;
  END IF;
  RETURN NULL;
END $$;
CREATE TRIGGER roster_log_without_gaps AFTER INSERT ON roster_log FOR EACH ROW EXECUTE FUNCTION advance_roster_head();
CREATE TRIGGER roster_log_immutable BEFORE UPDATE OR DELETE ON roster_log FOR EACH ROW EXECUTE FUNCTION refuse_change();

-- No roster changes without its entry.
ALTER TABLE conversations
  ADD CONSTRAINT conversations_roster_has_its_entry FOREIGN KEY (conversation_id, roster_version, roster_head)
    REFERENCES roster_log (conversation_id, roster_version, entry_hash) DEFERRABLE INITIALLY DEFERRED;
CREATE FUNCTION require_roster_head() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF EXISTS (SELECT FROM conversations WHERE conversation_id = NEW.conversation_id AND roster_head IS NULL) THEN
    RAISE EXCEPTION 'a roster has an entry in its log'
      USING ERRCODE = 'check_violation', CONSTRAINT = 'conversations_roster_has_its_entry', TABLE = TG_TABLE_NAME;
  END IF;
  RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER conversations_with_a_roster_head AFTER INSERT OR UPDATE OF roster_head ON conversations
  DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION require_roster_head();

-- An erasure is noted in no other name than an erased user's.
CREATE FUNCTION check_roster_erasure() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF NOT EXISTS (SELECT FROM erasures WHERE user_id = NEW.erased_user_id) THEN
    RAISE EXCEPTION 'nobody is removed unsigned but erased users'
      USING ERRCODE = 'check_violation', CONSTRAINT = 'roster_log_erases_erased_users', TABLE = TG_TABLE_NAME;
  END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER roster_log_erases_erased_users BEFORE INSERT ON roster_log FOR EACH ROW
  WHEN (NEW.erased_user_id IS NOT NULL) EXECUTE FUNCTION check_roster_erasure();

-- As before, where permissions and history policy change together with the version of the roster.
CREATE OR REPLACE FUNCTION check_conversation_step() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF NEW.epoch NOT IN (OLD.epoch, OLD.epoch + 1)
     OR NEW.roster_version NOT IN (OLD.roster_version, OLD.roster_version + 1)
     OR NEW.last_sequence NOT IN (OLD.last_sequence, OLD.last_sequence + 1)
     OR NEW.min_send_epoch < OLD.min_send_epoch
     OR (NEW.epoch = OLD.epoch) <> (NEW.session_id = OLD.session_id)
     OR (NEW.conversation_id, NEW.kind, NEW.created_at) IS DISTINCT FROM (OLD.conversation_id, OLD.kind, OLD.created_at)
     OR (NEW.history_policy, NEW.may_add, NEW.may_remove, NEW.may_change_policy) IS DISTINCT FROM
        (OLD.history_policy, OLD.may_add, OLD.may_remove, OLD.may_change_policy) AND NEW.roster_version = OLD.roster_version
     OR (NEW.direct_low, NEW.direct_high) IS DISTINCT FROM (OLD.direct_low, OLD.direct_high)
        AND NEW.closed_at IS NOT DISTINCT FROM OLD.closed_at THEN
    RAISE EXCEPTION 'a conversation moves forward one step at a time'
      USING ERRCODE = 'check_violation', CONSTRAINT = 'conversations_move_forward';
  END IF;
  RETURN NEW;
END $$;

-- Builds from before write no entries.
UPDATE schema_floor SET migration = '20261124040000_roster_logs';
