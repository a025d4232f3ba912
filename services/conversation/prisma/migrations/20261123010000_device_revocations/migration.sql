-- DEVICE_REVOKED is a reason for a rotation. Like a removal, it refuses messages under the current epoch: the device has that epoch's key.
ALTER TABLE conversations
  DROP CONSTRAINT conversations_rotation_due_check,
  ADD CONSTRAINT conversations_rotation_due_check CHECK (rotation_due BETWEEN 0 AND 4),
  DROP CONSTRAINT IF EXISTS conversations_removal_refuses_messages;
-- MEMBER_REMOVED or DEVICE_REVOKED is due exactly while messages under the current epoch are refused.
ALTER TABLE conversations
  ADD CONSTRAINT conversations_removal_refuses_messages CHECK ((rotation_due IN (2, 4)) = (min_send_epoch = epoch + 1));

-- Devices that are revoked, as identity-keys told them: they get no answers here, and no session is committed that covers one.
CREATE TABLE revoked_devices (
  user_id    text        COLLATE "C" NOT NULL CHECK (user_id ~ '^[A-Za-z0-9._:@-]{1,128}$'),
  device_id  text        COLLATE "C" NOT NULL,
  revoked_at timestamptz NOT NULL,
  PRIMARY KEY (user_id, device_id)
);
CREATE TRIGGER revoked_devices_immutable BEFORE UPDATE ON revoked_devices FOR EACH ROW EXECUTE FUNCTION refuse_change();

-- Up to which revocation of identity-keys, by its number, the list is complete. Events only make entries come sooner.
CREATE TABLE revocation_pull (
  one         boolean PRIMARY KEY DEFAULT true CHECK (one),
  complete_to bigint  NOT NULL CHECK (complete_to >= 0)
);
INSERT INTO revocation_pull (complete_to) VALUES (0);
CREATE FUNCTION refuse_pull_to_go_back() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF NEW.complete_to < OLD.complete_to THEN
    RAISE EXCEPTION 'the list of revoked devices does not become less complete'
      USING ERRCODE = 'check_violation', CONSTRAINT = 'revocation_pull_moves_forward';
  END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER revocation_pull_moves_forward BEFORE UPDATE ON revocation_pull
  FOR EACH ROW EXECUTE FUNCTION refuse_pull_to_go_back();

-- Users whose devices changed and whose conversations and peers are still to be reached, page by page. One row per user: a further change
-- starts over.
CREATE TABLE identity_changes (
  user_id     text        COLLATE "C" PRIMARY KEY CHECK (user_id ~ '^[A-Za-z0-9._:@-]{1,128}$'),
  -- Whether a rotation of the user's conversations becomes due, and the last one that was reached, in the order of their ids.
  marks       boolean     NOT NULL,
  marked_to   uuid,
  -- The last peer that was told, in the order of their ids; empty for none.
  told_to     text        COLLATE "C" NOT NULL DEFAULT '',
  traceparent text        NOT NULL,
  changed_at  timestamptz NOT NULL DEFAULT now(),
  CONSTRAINT identity_changes_marks_before_it_tells CHECK (NOT marks OR told_to = ''),
  CONSTRAINT identity_changes_place CHECK (marks OR marked_to IS NULL)
);
CREATE INDEX identity_changes_changed_at ON identity_changes (changed_at);

-- What consumers of events need.
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
