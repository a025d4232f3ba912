-- Erasures of users: which are asked for and how far they are; what the tables allow for erased users, and for nobody else.

CREATE TABLE erasures (
  erasure_id uuid PRIMARY KEY,
  user_id text NOT NULL,
  requested_at timestamptz NOT NULL,
  noted_at timestamptz NOT NULL DEFAULT now(),
  erased_at timestamptz
);
CREATE INDEX erasures_of_user ON erasures (user_id);
CREATE TABLE erasure_counts (
  erasure_id uuid NOT NULL REFERENCES erasures (erasure_id) ON DELETE CASCADE,
  kind text NOT NULL CHECK (kind <> ''),
  erased bigint NOT NULL DEFAULT 0 CHECK (erased >= 0),
  kept bigint NOT NULL DEFAULT 0 CHECK (kept >= 0),
  PRIMARY KEY (erasure_id, kind)
);

-- The memberships that a user ever had are the list of what is to be erased: they go last.
CREATE INDEX memberships_ever_of_user ON memberships (user_id, conversation_id);

-- A DIRECT conversation is closed when one of its two members is erased; it names no pair then.
ALTER TABLE conversations
  ADD COLUMN closed_at timestamptz,
  ADD CONSTRAINT conversations_closed_are_direct CHECK (closed_at IS NULL OR kind = 1),
  DROP CONSTRAINT conversations_direct_pair,
  ADD CONSTRAINT conversations_direct_pair CHECK (
    CASE WHEN kind = 1 AND closed_at IS NULL
      THEN direct_low IS NOT NULL AND direct_high IS NOT NULL AND direct_low < direct_high
      ELSE direct_low IS NULL AND direct_high IS NULL
    END
  );

CREATE FUNCTION check_closing() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF OLD.closed_at IS NOT NULL
     AND ((NEW.closed_at, NEW.epoch, NEW.last_sequence) IS DISTINCT FROM (OLD.closed_at, OLD.epoch, OLD.last_sequence))
     OR OLD.closed_at IS NULL AND NEW.closed_at IS NOT NULL
     AND NOT EXISTS (SELECT FROM erasures WHERE user_id IN (OLD.direct_low, OLD.direct_high)) THEN
    RAISE EXCEPTION 'a conversation is closed when a member is erased, and for good'
      USING ERRCODE = 'check_violation', CONSTRAINT = 'conversations_closed_for_good';
  END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER conversations_closing BEFORE UPDATE ON conversations FOR EACH ROW EXECUTE FUNCTION check_closing();

-- As before, where closing takes the pair away.
CREATE OR REPLACE FUNCTION check_conversation_step() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF NEW.epoch NOT IN (OLD.epoch, OLD.epoch + 1)
     OR NEW.roster_version NOT IN (OLD.roster_version, OLD.roster_version + 1)
     OR NEW.last_sequence NOT IN (OLD.last_sequence, OLD.last_sequence + 1)
     OR NEW.min_send_epoch < OLD.min_send_epoch
     OR (NEW.epoch = OLD.epoch) <> (NEW.session_id = OLD.session_id)
     OR (NEW.conversation_id, NEW.kind, NEW.history_policy, NEW.created_at) IS DISTINCT FROM
        (OLD.conversation_id, OLD.kind, OLD.history_policy, OLD.created_at)
     OR (NEW.direct_low, NEW.direct_high) IS DISTINCT FROM (OLD.direct_low, OLD.direct_high)
        AND NEW.closed_at IS NOT DISTINCT FROM OLD.closed_at THEN
    RAISE EXCEPTION 'a conversation moves forward one step at a time'
      USING ERRCODE = 'check_violation', CONSTRAINT = 'conversations_move_forward';
  END IF;
  RETURN NEW;
END $$;

-- As before, where a closed DIRECT conversation has one member at most.
CREATE OR REPLACE FUNCTION check_roster(changed uuid) RETURNS void LANGUAGE plpgsql AS $$
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
  IF conversation.kind = 1
     AND (CASE WHEN conversation.closed_at IS NULL THEN members <> 2 OR pair <> 2 ELSE members > 1 END) THEN
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

-- A membership that has ended says until when its user was entitled; it goes only with its user.
CREATE FUNCTION check_membership_goes() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF OLD.to_epoch IS NULL OR NOT EXISTS (SELECT FROM erasures WHERE user_id = OLD.user_id) THEN
    RAISE EXCEPTION 'a membership ends, and goes only with an erased user'
      USING ERRCODE = 'check_violation', CONSTRAINT = 'memberships_go_with_erased_users';
  END IF;
  RETURN OLD;
END $$;
CREATE TRIGGER memberships_go BEFORE DELETE ON memberships FOR EACH ROW EXECUTE FUNCTION check_membership_goes();

-- No erased user becomes a member any more. The lock is the one that noting an erasure takes: who looked before has committed by then.
CREATE FUNCTION refuse_members_who_are_erased() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_advisory_xact_lock_shared(hashtext('erasures'));
  IF EXISTS (SELECT FROM added a JOIN erasures e ON e.user_id = a.user_id) THEN
    RAISE EXCEPTION 'the user has been erased'
      USING ERRCODE = 'check_violation', CONSTRAINT = 'not_of_erased_users', TABLE = TG_TABLE_NAME;
  END IF;
  RETURN NULL;
END $$;
CREATE TRIGGER memberships_not_of_erased_users AFTER INSERT ON memberships
  REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION refuse_members_who_are_erased();

-- What an erased user sent is blanked: its place in the log stays, and says nothing, not even who sent it.
ALTER TABLE messages
  ADD COLUMN erased_at timestamptz,
  DROP CONSTRAINT messages_ciphertext_check,
  DROP CONSTRAINT messages_signature_check,
  ADD CONSTRAINT messages_whole_or_erased CHECK (
    CASE WHEN erased_at IS NULL
      THEN octet_length(ciphertext) BETWEEN 16 AND 65536 AND octet_length(signature) = 64 AND sender_user_id <> ''
      ELSE octet_length(ciphertext) = 0 AND octet_length(signature) = 0
        AND sender_user_id = '' AND sender_device_id = sequence::text AND sender_counter = 0
    END
  );

CREATE FUNCTION check_message_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF OLD.erased_at IS NULL AND NEW.erased_at IS NOT NULL
     AND (NEW.conversation_id, NEW.sequence, NEW.epoch, NEW.session_id, NEW.sent_at, NEW.writer_build)
       = (OLD.conversation_id, OLD.sequence, OLD.epoch, OLD.session_id, OLD.sent_at, OLD.writer_build)
     AND EXISTS (SELECT FROM erasures WHERE user_id = OLD.sender_user_id) THEN
    RETURN NEW;
  END IF;
  RAISE EXCEPTION 'messages are never changed, but blanked with an erased user'
    USING ERRCODE = 'check_violation', CONSTRAINT = 'messages_never_change';
END $$;
DROP TRIGGER messages_immutable ON messages;
CREATE TRIGGER messages_immutable BEFORE UPDATE ON messages FOR EACH ROW EXECUTE FUNCTION check_message_change();
