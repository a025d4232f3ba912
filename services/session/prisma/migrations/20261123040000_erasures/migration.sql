-- Erasures of users: which are asked for, how far they are, and what of them others still need to know.

CREATE TABLE erasures (
  erasure_id uuid PRIMARY KEY,
  user_id text NOT NULL,
  requested_at timestamptz NOT NULL,
  noted_at timestamptz NOT NULL DEFAULT now(),
  erased_at timestamptz,
  -- Sessions are gone through once, in the order of their keys: envelopes have no index by recipient, which every write would pay for.
  walked_conversation_id uuid,
  walked_session_id text,
  CONSTRAINT erasures_walked_to_a_session CHECK ((walked_conversation_id IS NULL) = (walked_session_id IS NULL))
);
CREATE INDEX erasures_of_user ON erasures (user_id);
CREATE TABLE erasure_counts (
  erasure_id uuid NOT NULL REFERENCES erasures (erasure_id) ON DELETE CASCADE,
  kind text NOT NULL CHECK (kind <> ''),
  erased bigint NOT NULL DEFAULT 0 CHECK (erased >= 0),
  kept bigint NOT NULL DEFAULT 0 CHECK (kept >= 0),
  PRIMARY KEY (erasure_id, kind)
);

-- How many envelopes and withholdings of a session were erased with their recipients: with those that are there, they are what the
-- session was stored with. Counted by the database alone, and without names.
CREATE TABLE erased_parts (
  conversation_id uuid NOT NULL,
  session_id text NOT NULL,
  envelopes integer NOT NULL DEFAULT 0 CHECK (envelopes >= 0),
  withholdings integer NOT NULL DEFAULT 0 CHECK (withholdings >= 0),
  PRIMARY KEY (conversation_id, session_id),
  FOREIGN KEY (conversation_id, session_id) REFERENCES sessions (conversation_id, session_id) ON DELETE CASCADE
);

CREATE FUNCTION refuse_written_count() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'erased parts are counted where they are deleted'
    USING ERRCODE = 'check_violation', CONSTRAINT = 'erased_parts_are_counted', TABLE = TG_TABLE_NAME;
END $$;
CREATE TRIGGER erased_parts_are_counted BEFORE INSERT OR UPDATE OR DELETE ON erased_parts
  FOR EACH ROW WHEN (pg_trigger_depth() = 0) EXECUTE FUNCTION refuse_written_count();

CREATE FUNCTION count_erased_parts() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  -- A session that goes as a whole takes its counts with it.
  IF TG_TABLE_NAME = 'envelopes' THEN
    INSERT INTO erased_parts AS p (conversation_id, session_id, envelopes)
    SELECT t.conversation_id, t.session_id, count(*) FROM taken t JOIN sessions s USING (conversation_id, session_id)
     WHERE t.attempt = 0 AND EXISTS (SELECT FROM erasures e WHERE e.user_id = t.user_id)
     GROUP BY t.conversation_id, t.session_id
    ON CONFLICT (conversation_id, session_id) DO UPDATE SET envelopes = p.envelopes + excluded.envelopes;
  ELSE
    INSERT INTO erased_parts AS p (conversation_id, session_id, withholdings)
    SELECT t.conversation_id, t.session_id, count(*) FROM taken t JOIN sessions s USING (conversation_id, session_id)
     WHERE EXISTS (SELECT FROM erasures e WHERE e.user_id = t.user_id)
     GROUP BY t.conversation_id, t.session_id
    ON CONFLICT (conversation_id, session_id) DO UPDATE SET withholdings = p.withholdings + excluded.withholdings;
  END IF;
  RETURN NULL;
END $$;
CREATE TRIGGER envelopes_erased AFTER DELETE ON envelopes
  REFERENCING OLD TABLE AS taken FOR EACH STATEMENT EXECUTE FUNCTION count_erased_parts();
CREATE TRIGGER withholdings_erased AFTER DELETE ON withholdings
  REFERENCING OLD TABLE AS taken FOR EACH STATEMENT EXECUTE FUNCTION count_erased_parts();

-- As before, where what was erased with its recipient counts as there.
CREATE OR REPLACE FUNCTION check_session_is_whole() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  of_conversation uuid;
  of_session text;
  expected_envelopes integer;
  expected_withholdings integer;
  present_envelopes integer;
  present_withholdings integer;
  erased erased_parts%ROWTYPE;
BEGIN
  IF TG_OP = 'DELETE' THEN
    of_conversation := OLD.conversation_id; of_session := OLD.session_id;
  ELSE
    of_conversation := NEW.conversation_id; of_session := NEW.session_id;
  END IF;
  SELECT envelopes_expected, withholdings_expected INTO expected_envelopes, expected_withholdings
    FROM sessions WHERE conversation_id = of_conversation AND session_id = of_session AND kind = 'NATIVE';
  IF NOT FOUND THEN RETURN NULL; END IF;
  SELECT count(*) INTO present_envelopes FROM envelopes
    WHERE conversation_id = of_conversation AND session_id = of_session AND attempt = 0;
  SELECT count(*) INTO present_withholdings FROM withholdings
    WHERE conversation_id = of_conversation AND session_id = of_session;
  SELECT * INTO erased FROM erased_parts WHERE conversation_id = of_conversation AND session_id = of_session;
  IF present_envelopes + coalesce(erased.envelopes, 0) <> expected_envelopes
     OR present_withholdings + coalesce(erased.withholdings, 0) <> expected_withholdings THEN
    RAISE EXCEPTION 'session %/% has % of % envelopes and % of % withholdings', of_conversation, of_session,
      present_envelopes, expected_envelopes, present_withholdings, expected_withholdings
      USING ERRCODE = 'check_violation', CONSTRAINT = 'session_is_whole', TABLE = TG_TABLE_NAME;
  END IF;
  RETURN NULL;
END $$;

CREATE OR REPLACE FUNCTION check_no_extra_envelopes() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  crowded record;
BEGIN
  SELECT s.conversation_id, s.session_id INTO crowded
    FROM (SELECT DISTINCT conversation_id, session_id FROM added WHERE attempt = 0) AS a
    JOIN sessions s USING (conversation_id, session_id)
    WHERE s.kind = 'NATIVE' AND s.envelopes_expected < (
      SELECT count(*) FROM envelopes e
      WHERE e.conversation_id = s.conversation_id AND e.session_id = s.session_id AND e.attempt = 0)
      + coalesce((SELECT p.envelopes FROM erased_parts p
      WHERE p.conversation_id = s.conversation_id AND p.session_id = s.session_id), 0)
    LIMIT 1;
  IF FOUND THEN
    RAISE EXCEPTION 'session %/% has more envelopes than it was stored with', crowded.conversation_id, crowded.session_id
      USING ERRCODE = 'check_violation', CONSTRAINT = 'session_is_whole', TABLE = TG_TABLE_NAME;
  END IF;
  RETURN NULL;
END $$;

-- Nothing is written for erased users any more. The lock is the one that noting an erasure takes: who looked before has committed by then.
CREATE FUNCTION refuse_rows_of_erased_users() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_advisory_xact_lock_shared(hashtext('erasures'));
  IF EXISTS (SELECT FROM added a JOIN erasures e ON e.user_id = a.user_id) THEN
    RAISE EXCEPTION 'the user has been erased'
      USING ERRCODE = 'check_violation', CONSTRAINT = 'not_of_erased_users', TABLE = TG_TABLE_NAME;
  END IF;
  RETURN NULL;
END $$;
CREATE TRIGGER envelopes_not_of_erased_users AFTER INSERT ON envelopes
  REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION refuse_rows_of_erased_users();
CREATE TRIGGER withholdings_not_of_erased_users AFTER INSERT ON withholdings
  REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION refuse_rows_of_erased_users();
CREATE TRIGGER key_requests_not_of_erased_users AFTER INSERT ON key_requests
  REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION refuse_rows_of_erased_users();

-- An offer to an erased user is not made, and the request goes on as if nobody had answered it.
CREATE FUNCTION skip_offers_to_erased_users() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_advisory_xact_lock_shared(hashtext('erasures'));
  IF EXISTS (SELECT FROM erasures e WHERE e.user_id = NEW.user_id) THEN RETURN NULL; END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER offers_not_to_erased_users BEFORE INSERT ON offers FOR EACH ROW EXECUTE FUNCTION skip_offers_to_erased_users();

-- What the purge of ended key requests looks for. Offers are written in the order of their times.
CREATE INDEX key_requests_ended_without_a_key ON key_requests (ended_at) WHERE state IN ('EXPIRED', 'CANCELLED', 'UNFULFILLABLE');
CREATE INDEX offers_by_age ON offers USING brin (offered_at);
