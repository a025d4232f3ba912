-- Conversations, epochs, rosters and the log of messages. Whatever must always be true of them stands here as a
-- constraint, so that no statement of any build can break it.

-- One row's equality and another row's range in one exclusion constraint: memberships must not overlap.
CREATE EXTENSION IF NOT EXISTS btree_gist;

CREATE TABLE conversations (
  conversation_id     uuid        PRIMARY KEY,
  kind                smallint    NOT NULL CHECK (kind IN (1, 2)),
  -- The pair of a DIRECT conversation in the order of their bytes: one conversation per pair.
  direct_low          text        COLLATE "C",
  direct_high         text        COLLATE "C",
  history_policy      smallint    NOT NULL CHECK (history_policy IN (1, 2)),
  epoch               bigint      NOT NULL CHECK (epoch > 0),
  session_id          text        NOT NULL,
  roster_version      bigint      NOT NULL CHECK (roster_version > 0),
  rotation_due        smallint    NOT NULL DEFAULT 0 CHECK (rotation_due BETWEEN 0 AND 3),
  -- Messages under earlier epochs are refused. A removal raises it above the current epoch until the session is rotated.
  min_send_epoch      bigint      NOT NULL DEFAULT 1,
  last_sequence       bigint      NOT NULL DEFAULT 0 CHECK (last_sequence >= 0),
  -- Whole milliseconds: it is the place in a paged list, and goes through clients.
  created_at          timestamptz(3) NOT NULL DEFAULT now(),
  writer_build        text        NOT NULL CHECK (writer_build <> ''),
  created_trace_id    text        NOT NULL,
  last_write_trace_id text        NOT NULL,
  CONSTRAINT conversations_direct_pair CHECK (
    CASE kind
      WHEN 1 THEN direct_low IS NOT NULL AND direct_high IS NOT NULL AND direct_low < direct_high
      ELSE direct_low IS NULL AND direct_high IS NULL
    END
  ),
  CONSTRAINT conversations_min_send_epoch CHECK (min_send_epoch BETWEEN 1 AND epoch + 1),
  -- MEMBER_REMOVED is due exactly while messages under the current epoch are refused.
  CONSTRAINT conversations_removal_refuses_messages CHECK ((rotation_due = 2) = (min_send_epoch = epoch + 1))
);

CREATE UNIQUE INDEX conversations_one_per_pair ON conversations (direct_low, direct_high) WHERE kind = 1;

-- What became of a session that was to be committed. Commit and abort insert the same key: one of them wins, for ever.
CREATE TABLE session_decisions (
  conversation_id uuid        NOT NULL,
  session_id      text        NOT NULL CHECK (session_id ~ '^[A-Za-z0-9._:-]{1,128}$'),
  outcome         text        NOT NULL CHECK (outcome IN ('COMMITTED', 'ABORTED')),
  decided_at      timestamptz NOT NULL DEFAULT now(),
  writer_build    text        NOT NULL CHECK (writer_build <> ''),
  trace_id        text        NOT NULL,
  PRIMARY KEY (conversation_id, session_id),
  UNIQUE (conversation_id, session_id, outcome)
);

-- Sessions that are being stored with the service session and are not decided yet.
CREATE TABLE candidates (
  conversation_id uuid        NOT NULL,
  session_id      text        NOT NULL CHECK (session_id ~ '^[A-Za-z0-9._:-]{1,128}$'),
  request_id      uuid        NOT NULL,
  caller_user_id  text        NOT NULL,
  -- Counts the attempts, so that cleaning up after one attempt does not forget a later one.
  attempt         integer     NOT NULL DEFAULT 1 CHECK (attempt > 0),
  started_at      timestamptz NOT NULL DEFAULT now(),
  writer_build    text        NOT NULL CHECK (writer_build <> ''),
  trace_id        text        NOT NULL,
  PRIMARY KEY (conversation_id, session_id)
);

CREATE INDEX candidates_started_at ON candidates (started_at);

-- One session per epoch, one epoch per session, and each epoch on top of the one before.
CREATE TABLE epochs (
  conversation_id      uuid        NOT NULL REFERENCES conversations (conversation_id),
  epoch                bigint      NOT NULL CHECK (epoch > 0),
  session_id           text        NOT NULL,
  outcome              text        NOT NULL DEFAULT 'COMMITTED' CHECK (outcome = 'COMMITTED'),
  roster_version       bigint      NOT NULL CHECK (roster_version > 0),
  header_hash          bytea       NOT NULL CHECK (octet_length(header_hash) = 32),
  previous_epoch       bigint      GENERATED ALWAYS AS (nullif(epoch - 1, 0)) STORED,
  previous_header_hash bytea,
  initiator_user_id    text        NOT NULL,
  initiator_device_id  text        NOT NULL,
  envelopes_written    integer     NOT NULL CHECK (envelopes_written > 0),
  envelopes_expected   integer     NOT NULL,
  committed_at         timestamptz NOT NULL DEFAULT now(),
  writer_build         text        NOT NULL CHECK (writer_build <> ''),
  trace_id             text        NOT NULL,
  PRIMARY KEY (conversation_id, epoch),
  CONSTRAINT epochs_one_per_session UNIQUE (conversation_id, session_id),
  UNIQUE (conversation_id, epoch, session_id),
  UNIQUE (conversation_id, epoch, header_hash),
  CONSTRAINT epochs_whole_session CHECK (envelopes_written = envelopes_expected),
  CONSTRAINT epochs_first_has_no_predecessor CHECK ((epoch = 1) = (previous_header_hash IS NULL)),
  CONSTRAINT epochs_committed FOREIGN KEY (conversation_id, session_id, outcome)
    REFERENCES session_decisions (conversation_id, session_id, outcome),
  CONSTRAINT epochs_chain FOREIGN KEY (conversation_id, previous_epoch, previous_header_hash)
    REFERENCES epochs (conversation_id, epoch, header_hash)
);

-- A conversation is never visible without the session of its epoch.
ALTER TABLE conversations
  ADD CONSTRAINT conversations_epoch_has_session FOREIGN KEY (conversation_id, epoch, session_id)
    REFERENCES epochs (conversation_id, epoch, session_id) DEFERRABLE INITIALLY DEFERRED;

-- A membership is a span of epochs. One that ended before its first epoch is empty (to_epoch = from_epoch - 1): the user
-- was added and removed again before any session was made for them.
CREATE TABLE memberships (
  conversation_id     uuid     NOT NULL REFERENCES conversations (conversation_id),
  user_id             text     COLLATE "C" NOT NULL CHECK (user_id ~ '^[A-Za-z0-9._:@-]{1,128}$'),
  role                smallint NOT NULL CHECK (role IN (1, 2)),
  from_epoch          bigint   NOT NULL CHECK (from_epoch > 0),
  to_epoch            bigint   CHECK (to_epoch > 0),
  from_roster_version bigint   NOT NULL CHECK (from_roster_version > 0),
  to_roster_version   bigint,
  PRIMARY KEY (conversation_id, user_id, from_roster_version),
  CONSTRAINT memberships_span CHECK (to_epoch >= from_epoch - 1),
  CONSTRAINT memberships_ended_both_ways CHECK ((to_epoch IS NULL) = (to_roster_version IS NULL)),
  CONSTRAINT memberships_roster_span CHECK (to_roster_version > from_roster_version),
  CONSTRAINT memberships_do_not_overlap EXCLUDE USING gist (
    conversation_id WITH =, user_id WITH =, int8range(from_epoch, to_epoch, '[]') WITH &&
  ) WHERE (to_epoch IS NULL OR to_epoch >= from_epoch),
  CONSTRAINT memberships_rosters_do_not_overlap EXCLUDE USING gist (
    conversation_id WITH =, user_id WITH =, int8range(from_roster_version, to_roster_version) WITH &&
  )
);

CREATE UNIQUE INDEX memberships_one_open ON memberships (conversation_id, user_id) WHERE to_epoch IS NULL;
CREATE INDEX memberships_of_user ON memberships (user_id, conversation_id) WHERE to_epoch IS NULL;

-- The log of ciphertexts. The counter is the nonce: used once under a session by a device.
CREATE TABLE messages (
  conversation_id  uuid        NOT NULL,
  sequence         bigint      NOT NULL CHECK (sequence > 0),
  epoch            bigint      NOT NULL,
  session_id       text        NOT NULL,
  sender_user_id   text        NOT NULL,
  sender_device_id text        NOT NULL,
  sender_counter   bigint      NOT NULL CHECK (sender_counter >= 0),
  ciphertext       bytea       NOT NULL CHECK (octet_length(ciphertext) BETWEEN 16 AND 65536),
  signature        bytea       NOT NULL CHECK (octet_length(signature) = 64),
  sent_at          timestamptz NOT NULL DEFAULT now(),
  writer_build     text        NOT NULL CHECK (writer_build <> ''),
  PRIMARY KEY (conversation_id, sequence),
  CONSTRAINT messages_counter_used_once UNIQUE (conversation_id, session_id, sender_user_id, sender_device_id, sender_counter),
  CONSTRAINT messages_under_a_session FOREIGN KEY (conversation_id, epoch, session_id)
    REFERENCES epochs (conversation_id, epoch, session_id)
);

-- A DIRECT conversation has its two members and no others, for good; a roster that is not empty has an admin.
CREATE FUNCTION check_roster(changed uuid) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  conversation conversations%ROWTYPE;
  members      bigint;
  admins       bigint;
  pair         bigint;
BEGIN
  SELECT * INTO conversation FROM conversations WHERE conversation_id = changed;
  SELECT count(*),
         count(*) FILTER (WHERE role = 1),
         count(*) FILTER (WHERE user_id IN (conversation.direct_low, conversation.direct_high))
    INTO members, admins, pair
    FROM memberships WHERE conversation_id = changed AND to_epoch IS NULL;
  IF conversation.kind = 1 AND (members <> 2 OR pair <> 2) THEN
    RAISE EXCEPTION 'a DIRECT conversation has its two members'
      USING ERRCODE = 'check_violation', CONSTRAINT = 'roster_direct_is_fixed';
  END IF;
  IF members > 0 AND admins = 0 THEN
    RAISE EXCEPTION 'a roster that is not empty has an admin'
      USING ERRCODE = 'check_violation', CONSTRAINT = 'roster_has_an_admin';
  END IF;
  IF members = 0 AND conversation.roster_version = 1 THEN
    RAISE EXCEPTION 'a new conversation has members'
      USING ERRCODE = 'check_violation', CONSTRAINT = 'roster_not_empty_at_creation';
  END IF;
END $$;

CREATE FUNCTION check_new_roster() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM check_roster(NEW.conversation_id);
  RETURN NULL;
END $$;

CREATE CONSTRAINT TRIGGER conversations_roster AFTER INSERT ON conversations
  DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION check_new_roster();

-- Once per statement: an insert of a thousand members must not count them a thousand times.
CREATE FUNCTION check_changed_rosters() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM check_roster(conversation_id) FROM (SELECT DISTINCT conversation_id FROM changed) AS rosters;
  RETURN NULL;
END $$;

CREATE TRIGGER memberships_inserted AFTER INSERT ON memberships REFERENCING NEW TABLE AS changed
  FOR EACH STATEMENT EXECUTE FUNCTION check_changed_rosters();
CREATE TRIGGER memberships_updated AFTER UPDATE ON memberships REFERENCING NEW TABLE AS changed
  FOR EACH STATEMENT EXECUTE FUNCTION check_changed_rosters();
CREATE TRIGGER memberships_deleted AFTER DELETE ON memberships REFERENCING OLD TABLE AS changed
  FOR EACH STATEMENT EXECUTE FUNCTION check_changed_rosters();

-- A roster changes only together with its version.
CREATE FUNCTION check_membership_version() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  version bigint;
BEGIN
  SELECT roster_version INTO version FROM conversations WHERE conversation_id = NEW.conversation_id;
  IF NEW.to_epoch IS NULL AND TG_OP = 'INSERT' AND NEW.from_roster_version <> version
     OR NEW.to_epoch IS NOT NULL AND NEW.to_roster_version <> version THEN
    RAISE EXCEPTION 'a membership starts and ends with a roster version'
      USING ERRCODE = 'check_violation', CONSTRAINT = 'memberships_change_the_roster_version';
  END IF;
  RETURN NEW;
END $$;

CREATE TRIGGER memberships_version BEFORE INSERT OR UPDATE ON memberships
  FOR EACH ROW EXECUTE FUNCTION check_membership_version();

-- Epochs, rosters and sequences never go back, and what a conversation is never changes.
CREATE FUNCTION check_conversation_step() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF NEW.epoch NOT IN (OLD.epoch, OLD.epoch + 1)
     OR NEW.roster_version NOT IN (OLD.roster_version, OLD.roster_version + 1)
     OR NEW.last_sequence NOT IN (OLD.last_sequence, OLD.last_sequence + 1)
     OR NEW.min_send_epoch < OLD.min_send_epoch
     OR (NEW.epoch = OLD.epoch) <> (NEW.session_id = OLD.session_id)
     OR (NEW.conversation_id, NEW.kind, NEW.history_policy, NEW.created_at) IS DISTINCT FROM
        (OLD.conversation_id, OLD.kind, OLD.history_policy, OLD.created_at)
     OR (NEW.direct_low, NEW.direct_high) IS DISTINCT FROM (OLD.direct_low, OLD.direct_high) THEN
    RAISE EXCEPTION 'a conversation moves forward one step at a time'
      USING ERRCODE = 'check_violation', CONSTRAINT = 'conversations_move_forward';
  END IF;
  RETURN NEW;
END $$;

CREATE TRIGGER conversations_step BEFORE UPDATE ON conversations FOR EACH ROW EXECUTE FUNCTION check_conversation_step();

CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'rows of % are never changed', TG_TABLE_NAME
    USING ERRCODE = 'check_violation', CONSTRAINT = TG_TABLE_NAME || '_never_change';
END $$;

CREATE TRIGGER session_decisions_immutable BEFORE UPDATE ON session_decisions FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER epochs_immutable BEFORE UPDATE ON epochs FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER messages_immutable BEFORE UPDATE ON messages FOR EACH ROW EXECUTE FUNCTION refuse_change();

-- Request ids, so that a repeated request gets the first answer.
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

-- The oldest migration that a build must know to serve this database.
CREATE TABLE schema_floor (
  one boolean PRIMARY KEY DEFAULT true CHECK (one),
  migration text NOT NULL
);
INSERT INTO schema_floor (migration) VALUES ('');

-- Events that wait to be published.
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
