-- Rotations that are due by age and by message count, who is asked to make them, and what changed for a user since a cursor.

-- AGE, MESSAGE_COUNT and POLICY_CHANGED are reasons.
ALTER TABLE conversations
  DROP CONSTRAINT conversations_rotation_due_check,
  ADD CONSTRAINT conversations_rotation_due_check CHECK (rotation_due BETWEEN 0 AND 7);

-- When the current epoch began, and after which message. Conversations that were there before begin to age now.
ALTER TABLE conversations
  ADD COLUMN epoch_began_at timestamptz NOT NULL DEFAULT now(),
  ADD COLUMN epoch_began_sequence bigint NOT NULL DEFAULT 0,
  -- The transaction that last wrote the row. It has no index: a message writes it, and must not write an index. A user's conversations are few.
  ADD COLUMN changed_xid xid8 NOT NULL DEFAULT '0',
  ADD CONSTRAINT conversations_epoch_began_sequence CHECK (epoch_began_sequence BETWEEN 0 AND last_sequence);

CREATE INDEX conversations_by_age ON conversations (epoch_began_at) WHERE rotation_due = 0 AND closed_at IS NULL;

CREATE FUNCTION note_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  NEW.changed_xid := pg_current_xact_id();
  RETURN NEW;
END $$;
CREATE TRIGGER conversations_changed BEFORE INSERT OR UPDATE ON conversations FOR EACH ROW EXECUTE FUNCTION note_change();

CREATE FUNCTION begin_epoch() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  NEW.epoch_began_at := now();
  NEW.epoch_began_sequence := NEW.last_sequence;
  RETURN NEW;
END $$;
CREATE TRIGGER conversations_epoch_begins BEFORE UPDATE ON conversations FOR EACH ROW
  WHEN (NEW.epoch <> OLD.epoch) EXECUTE FUNCTION begin_epoch();

-- A membership that ends says so once: which transaction ended it, and how far the log went then.
ALTER TABLE memberships
  ADD COLUMN changed_xid xid8 NOT NULL DEFAULT '0',
  ADD COLUMN to_sequence bigint;
CREATE FUNCTION end_membership() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  NEW.changed_xid := pg_current_xact_id();
  SELECT last_sequence INTO NEW.to_sequence FROM conversations WHERE conversation_id = NEW.conversation_id;
  RETURN NEW;
END $$;
CREATE TRIGGER memberships_end BEFORE UPDATE ON memberships FOR EACH ROW
  WHEN (OLD.to_epoch IS NULL AND NEW.to_epoch IS NOT NULL) EXECUTE FUNCTION end_membership();

-- A conversation whose rotation is due has a row here, until its epoch moves: a look at it, by whichever replica claims it, is due at next_attempt_at.
CREATE TABLE rotations_due (
  conversation_id uuid        PRIMARY KEY REFERENCES conversations (conversation_id) ON DELETE CASCADE,
  epoch           bigint      NOT NULL CHECK (epoch > 0),
  due_since       timestamptz NOT NULL DEFAULT now(),
  next_attempt_at timestamptz NOT NULL DEFAULT now(),
  -- Looks in a row that found nobody to ask.
  waits           integer     NOT NULL DEFAULT 0 CHECK (waits >= 0),
  -- Whoever looked decides only on what it saw.
  version         bigint      NOT NULL DEFAULT 1
);
CREATE INDEX rotations_due_next_attempt_at ON rotations_due (next_attempt_at);

-- Which devices were asked to make the rotation, each as it was asked last.
CREATE TABLE rotation_asks (
  conversation_id uuid        NOT NULL REFERENCES rotations_due (conversation_id) ON DELETE CASCADE,
  user_id         text        COLLATE "C" NOT NULL CHECK (user_id ~ '^[A-Za-z0-9._:@-]{1,128}$'),
  device_id       text        COLLATE "C" NOT NULL,
  asked_at        timestamptz NOT NULL,
  asked_until     timestamptz NOT NULL CHECK (asked_until > asked_at),
  times           integer     NOT NULL DEFAULT 1 CHECK (times > 0),
  -- Set when it declined, or when its time was over and the next one was looked for.
  ended_at        timestamptz,
  declined        boolean     NOT NULL DEFAULT false CHECK (NOT declined OR ended_at IS NOT NULL),
  PRIMARY KEY (conversation_id, user_id, device_id)
);
-- One device is asked at a time, however many replicas ask.
CREATE UNIQUE INDEX rotation_asks_one_at_a_time ON rotation_asks (conversation_id) WHERE ended_at IS NULL;
CREATE INDEX rotation_asks_of_user ON rotation_asks (user_id);

CREATE FUNCTION keep_rotations_due() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF NEW.rotation_due = 0 OR NEW.closed_at IS NOT NULL THEN
    DELETE FROM rotations_due WHERE conversation_id = NEW.conversation_id;
    RETURN NULL;
  END IF;
  DELETE FROM rotations_due WHERE conversation_id = NEW.conversation_id AND epoch <> NEW.epoch;
  INSERT INTO rotations_due (conversation_id, epoch) VALUES (NEW.conversation_id, NEW.epoch)
  ON CONFLICT (conversation_id) DO UPDATE SET next_attempt_at = now(), version = rotations_due.version + 1;
  RETURN NULL;
END $$;
CREATE TRIGGER conversations_made_due AFTER INSERT ON conversations FOR EACH ROW
  WHEN (NEW.rotation_due <> 0) EXECUTE FUNCTION keep_rotations_due();
CREATE TRIGGER conversations_became_due AFTER UPDATE ON conversations FOR EACH ROW
  WHEN ((OLD.rotation_due, OLD.epoch, OLD.closed_at) IS DISTINCT FROM (NEW.rotation_due, NEW.epoch, NEW.closed_at))
  EXECUTE FUNCTION keep_rotations_due();

INSERT INTO rotations_due (conversation_id, epoch)
  SELECT conversation_id, epoch FROM conversations WHERE rotation_due <> 0 AND closed_at IS NULL;
