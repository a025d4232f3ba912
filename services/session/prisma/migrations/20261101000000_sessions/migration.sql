-- Sessions, their envelopes, and key requests.

CREATE TABLE sessions (
  conversation_id uuid NOT NULL,
  session_id text NOT NULL CHECK (session_id ~ '^[A-Za-z0-9._:-]{1,128}$'),
  kind text NOT NULL CHECK (kind IN ('NATIVE', 'IMPORTED')),
  epoch bigint NOT NULL CHECK (epoch >= 1),
  initiator_user_id text NOT NULL,
  initiator_device_id text NOT NULL,
  header bytea,
  header_signature bytea,
  header_hash bytea,
  initiator_identity_key bytea,
  initiator_signing_key bytea,
  initiator_ephemeral_key bytea,
  initiator_root_key bytea,
  initiator_suite integer,
  initiator_certified_at timestamptz,
  initiator_certificate_signature bytea,
  key_commitment bytea,
  envelopes_expected integer NOT NULL CHECK (envelopes_expected >= 0),
  withholdings_expected integer NOT NULL CHECK (withholdings_expected >= 0),
  content_digest bytea,
  imported_from text,
  writer_build text NOT NULL,
  created_traceparent text NOT NULL,
  created_trace_id text NOT NULL GENERATED ALWAYS AS (split_part(created_traceparent, '-', 2)) STORED,
  created_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (conversation_id, session_id),
  CONSTRAINT sessions_native_is_complete CHECK (
    kind <> 'NATIVE' OR (
      header IS NOT NULL AND octet_length(header) BETWEEN 1 AND 131072
      AND header_signature IS NOT NULL AND octet_length(header_signature) = 64
      AND header_hash IS NOT NULL AND octet_length(header_hash) = 32
      AND initiator_identity_key IS NOT NULL AND octet_length(initiator_identity_key) = 32
      AND initiator_signing_key IS NOT NULL AND octet_length(initiator_signing_key) = 32
      AND initiator_ephemeral_key IS NOT NULL AND octet_length(initiator_ephemeral_key) = 32
      AND key_commitment IS NOT NULL AND octet_length(key_commitment) = 32
      AND initiator_root_key IS NOT NULL AND octet_length(initiator_root_key) = 32
      AND initiator_suite IS NOT NULL AND initiator_suite >= 1
      AND initiator_certified_at IS NOT NULL
      AND initiator_certificate_signature IS NOT NULL AND octet_length(initiator_certificate_signature) = 64
      AND content_digest IS NOT NULL AND octet_length(content_digest) = 32
      AND envelopes_expected >= 1
      AND imported_from IS NULL
    )
  ),
  -- Rows of an older system say where they come from. They may lack keys, never carry malformed ones.
  CONSTRAINT sessions_imported_is_marked CHECK (
    kind <> 'IMPORTED' OR (
      imported_from IS NOT NULL
      AND (header IS NULL OR octet_length(header) BETWEEN 1 AND 131072)
      AND (header_signature IS NULL OR octet_length(header_signature) = 64)
      AND (header_hash IS NULL OR octet_length(header_hash) = 32)
      AND (initiator_identity_key IS NULL OR octet_length(initiator_identity_key) = 32)
      AND (initiator_signing_key IS NULL OR octet_length(initiator_signing_key) = 32)
      AND (initiator_ephemeral_key IS NULL OR octet_length(initiator_ephemeral_key) = 32)
      AND (key_commitment IS NULL OR octet_length(key_commitment) = 32)
      -- A certificate is whole or absent.
      AND num_nulls(initiator_root_key, initiator_suite, initiator_certified_at, initiator_certificate_signature) IN (0, 4)
      AND (initiator_root_key IS NULL OR octet_length(initiator_root_key) = 32)
      AND (initiator_suite IS NULL OR initiator_suite >= 1)
      AND (initiator_certificate_signature IS NULL OR octet_length(initiator_certificate_signature) = 64)
    )
  )
);

CREATE TABLE key_requests (
  key_request_id uuid PRIMARY KEY,
  conversation_id uuid NOT NULL,
  session_id text NOT NULL,
  epoch bigint NOT NULL,
  user_id text NOT NULL,
  device_id text NOT NULL,
  kind text NOT NULL CHECK (kind IN ('MISSING', 'REWRAP', 'REJECTED')),
  state text NOT NULL CHECK (state IN ('WAITING_FOR_HOLDER', 'OFFERED', 'FULFILLED', 'EXPIRED', 'CANCELLED', 'UNFULFILLABLE')),
  -- Attempts go on counting over the requests of one device for one session, so that the newest envelope is the highest attempt.
  attempt_base integer NOT NULL CHECK (attempt_base >= 0),
  attempt integer NOT NULL,
  accepted_attempt integer,
  holders integer NOT NULL CHECK (holders >= 0),
  requested_at timestamptz NOT NULL,
  next_attempt_at timestamptz NOT NULL,
  expires_at timestamptz NOT NULL,
  holder_wanted_at timestamptz,
  ended_at timestamptz,
  ended_because text,
  -- Grows with each change: who decides on an old version decides nothing.
  version integer NOT NULL DEFAULT 1,
  traceparent text NOT NULL,
  writer_build text NOT NULL,
  FOREIGN KEY (conversation_id, session_id) REFERENCES sessions (conversation_id, session_id),
  CONSTRAINT key_requests_attempts CHECK (attempt >= attempt_base),
  CONSTRAINT key_requests_ended_says_why CHECK ((state IN ('WAITING_FOR_HOLDER', 'OFFERED')) = (ended_at IS NULL)
    AND (ended_at IS NULL) = (ended_because IS NULL)),
  CONSTRAINT key_requests_fulfilled_by_attempt CHECK ((state = 'FULFILLED') = (accepted_attempt IS NOT NULL))
);
CREATE UNIQUE INDEX key_requests_one_open ON key_requests (conversation_id, session_id, user_id, device_id)
  WHERE state IN ('WAITING_FOR_HOLDER', 'OFFERED');
CREATE INDEX key_requests_due ON key_requests (next_attempt_at) WHERE state IN ('WAITING_FOR_HOLDER', 'OFFERED');
CREATE INDEX key_requests_waiting ON key_requests (conversation_id, session_id) WHERE state = 'WAITING_FOR_HOLDER';
CREATE INDEX key_requests_of_requester ON key_requests (user_id, device_id, requested_at, key_request_id);
CREATE INDEX key_requests_of_session_device ON key_requests (conversation_id, session_id, user_id, device_id);

CREATE TABLE envelopes (
  conversation_id uuid NOT NULL,
  session_id text NOT NULL,
  user_id text NOT NULL,
  device_id text NOT NULL,
  attempt integer NOT NULL CHECK (attempt >= 0),
  key_request_id uuid REFERENCES key_requests (key_request_id),
  sealer_user_id text NOT NULL,
  sealer_device_id text NOT NULL,
  sealer_identity_key bytea NOT NULL CHECK (octet_length(sealer_identity_key) = 32),
  sealer_signing_key bytea NOT NULL CHECK (octet_length(sealer_signing_key) = 32),
  sealer_root_key bytea NOT NULL CHECK (octet_length(sealer_root_key) = 32),
  sealer_suite integer NOT NULL CHECK (sealer_suite >= 1),
  sealer_certified_at timestamptz NOT NULL,
  sealer_certificate_signature bytea NOT NULL CHECK (octet_length(sealer_certificate_signature) = 64),
  sealer_ephemeral_key bytea NOT NULL CHECK (octet_length(sealer_ephemeral_key) = 32),
  signed_prekey_id bigint NOT NULL CHECK (signed_prekey_id BETWEEN 1 AND 4294967295),
  one_time_prekey_id bigint NOT NULL CHECK (one_time_prekey_id BETWEEN 0 AND 4294967295),
  kem_prekey_id bigint NOT NULL CHECK (kem_prekey_id BETWEEN 1 AND 4294967295),
  kem_ciphertext bytea NOT NULL CHECK (octet_length(kem_ciphertext) = 1088),
  ciphertext bytea NOT NULL CHECK (octet_length(ciphertext) = 48),
  signature bytea NOT NULL CHECK (octet_length(signature) = 64),
  written_at timestamptz NOT NULL DEFAULT now(),
  opened_at timestamptz,
  rejected_at timestamptz,
  PRIMARY KEY (conversation_id, session_id, user_id, device_id, attempt),
  FOREIGN KEY (conversation_id, session_id) REFERENCES sessions (conversation_id, session_id) ON DELETE CASCADE,
  CONSTRAINT envelopes_of_request CHECK ((attempt = 0) = (key_request_id IS NULL)),
  CONSTRAINT envelopes_one_per_attempt UNIQUE (key_request_id, attempt)
);

CREATE TABLE withholdings (
  conversation_id uuid NOT NULL,
  session_id text NOT NULL,
  user_id text NOT NULL,
  device_id text NOT NULL,
  reason text NOT NULL CHECK (reason IN ('UNCERTIFIED', 'ROOT_KEY_CHANGED', 'NOT_TRUSTED', 'NO_PREKEYS')),
  signature bytea NOT NULL CHECK (octet_length(signature) = 64),
  PRIMARY KEY (conversation_id, session_id, user_id, device_id),
  FOREIGN KEY (conversation_id, session_id) REFERENCES sessions (conversation_id, session_id) ON DELETE CASCADE
);

CREATE TABLE revoked_devices (
  user_id text NOT NULL,
  device_id text NOT NULL,
  revoked_at timestamptz NOT NULL,
  PRIMARY KEY (user_id, device_id)
);

CREATE TABLE offers (
  key_request_id uuid NOT NULL REFERENCES key_requests (key_request_id) ON DELETE CASCADE,
  attempt integer NOT NULL CHECK (attempt >= 1),
  user_id text NOT NULL,
  device_id text NOT NULL,
  offered_at timestamptz NOT NULL,
  lapses_at timestamptz NOT NULL,
  declined_at timestamptz,
  decline_reason text CHECK (decline_reason IN ('UNCERTIFIED', 'ROOT_KEY_CHANGED', 'NOT_ENTITLED', 'KEY_NOT_HELD', 'NOT_TRUSTED')),
  PRIMARY KEY (key_request_id, attempt, user_id, device_id),
  CONSTRAINT offers_decline_says_why CHECK ((declined_at IS NULL) = (decline_reason IS NULL))
);
CREATE INDEX offers_of_holder ON offers (user_id, device_id, lapses_at);

-- A session never changes: what a recipient verified yesterday is what the next one gets.
CREATE FUNCTION refuse_session_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'a session is immutable' USING ERRCODE = 'check_violation', CONSTRAINT = 'sessions_immutable', TABLE = TG_TABLE_NAME;
END $$;
CREATE TRIGGER sessions_immutable BEFORE UPDATE ON sessions FOR EACH ROW EXECUTE FUNCTION refuse_session_change();
CREATE TRIGGER withholdings_immutable BEFORE UPDATE ON withholdings FOR EACH ROW EXECUTE FUNCTION refuse_session_change();
-- Of an envelope, only what its recipient says about it may change.
CREATE TRIGGER envelopes_immutable BEFORE UPDATE OF
  conversation_id, session_id, user_id, device_id, attempt, key_request_id, sealer_user_id, sealer_device_id, sealer_identity_key,
  sealer_signing_key, sealer_root_key, sealer_suite, sealer_certified_at, sealer_certificate_signature, sealer_ephemeral_key,
  signed_prekey_id, one_time_prekey_id, kem_prekey_id, kem_ciphertext, ciphertext, signature, written_at
  ON envelopes FOR EACH ROW EXECUTE FUNCTION refuse_session_change();

-- At commit, a NATIVE session has exactly the envelopes and withholdings that it was stored with.
CREATE FUNCTION check_session_is_whole() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  of_conversation uuid;
  of_session text;
  expected_envelopes integer;
  expected_withholdings integer;
  present_envelopes integer;
  present_withholdings integer;
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
  IF present_envelopes <> expected_envelopes OR present_withholdings <> expected_withholdings THEN
    RAISE EXCEPTION 'session %/% has % of % envelopes and % of % withholdings', of_conversation, of_session,
      present_envelopes, expected_envelopes, present_withholdings, expected_withholdings
      USING ERRCODE = 'check_violation', CONSTRAINT = 'session_is_whole', TABLE = TG_TABLE_NAME;
  END IF;
  RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER session_is_whole AFTER INSERT ON sessions
  DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION check_session_is_whole();
CREATE CONSTRAINT TRIGGER session_keeps_its_envelopes AFTER DELETE ON envelopes
  DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (OLD.attempt = 0) EXECUTE FUNCTION check_session_is_whole();
CREATE CONSTRAINT TRIGGER session_keeps_its_withholdings AFTER DELETE ON withholdings
  DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION check_session_is_whole();

-- A first-attempt envelope cannot be slipped in later. Per statement, because a session may have more than a thousand.
CREATE FUNCTION check_no_extra_envelopes() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  crowded record;
BEGIN
  SELECT s.conversation_id, s.session_id INTO crowded
    FROM (SELECT DISTINCT conversation_id, session_id FROM added WHERE attempt = 0) AS a
    JOIN sessions s USING (conversation_id, session_id)
    WHERE s.kind = 'NATIVE' AND s.envelopes_expected < (
      SELECT count(*) FROM envelopes e
      WHERE e.conversation_id = s.conversation_id AND e.session_id = s.session_id AND e.attempt = 0)
    LIMIT 1;
  IF FOUND THEN
    RAISE EXCEPTION 'session %/% has more envelopes than it was stored with', crowded.conversation_id, crowded.session_id
      USING ERRCODE = 'check_violation', CONSTRAINT = 'session_is_whole', TABLE = TG_TABLE_NAME;
  END IF;
  RETURN NULL;
END $$;
CREATE TRIGGER session_takes_no_extra_envelopes AFTER INSERT ON envelopes
  REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION check_no_extra_envelopes();

-- What onceByRequestId, the outbox, the inbox and the schema floor need.
CREATE TABLE request_ids (
  caller text NOT NULL,
  request_id uuid NOT NULL,
  method text NOT NULL,
  content_digest bytea NOT NULL CHECK (octet_length(content_digest) = 32),
  response bytea,
  created_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (caller, request_id)
);
CREATE INDEX request_ids_created_at ON request_ids (created_at);
CREATE TABLE outbox (
  seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  id text NOT NULL DEFAULT gen_random_uuid()::text,
  aggregate text NOT NULL,
  partition smallint NOT NULL CHECK (partition BETWEEN 0 AND 15),
  subject text NOT NULL,
  payload bytea NOT NULL CHECK (octet_length(payload) <= 524288),
  traceparent text NOT NULL DEFAULT '',
  created_at timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_insert_scale_factor = 0);
CREATE TABLE inbox (
  consumer text NOT NULL,
  event_id text NOT NULL,
  received_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (consumer, event_id)
);
CREATE INDEX inbox_received_at ON inbox (received_at);
CREATE TABLE dead_letters (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  consumer text NOT NULL,
  subject text NOT NULL,
  event_id text NOT NULL,
  payload bytea NOT NULL,
  traceparent text NOT NULL,
  reason text NOT NULL,
  at timestamptz NOT NULL DEFAULT now(),
  UNIQUE (consumer, event_id)
);
CREATE TABLE schema_floor (
  one boolean PRIMARY KEY DEFAULT true CHECK (one),
  migration text NOT NULL
);
INSERT INTO schema_floor (migration) VALUES ('');
