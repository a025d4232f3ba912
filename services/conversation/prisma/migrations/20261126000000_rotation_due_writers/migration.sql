-- By which build, and in which trace, a rotation became due: those of the write that made it due, whichever build wrote it. What was due before does not say.
ALTER TABLE rotations_due
  ADD COLUMN due_writer_build text,
  ADD COLUMN due_trace_id     text;

CREATE OR REPLACE FUNCTION keep_rotations_due() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF NEW.rotation_due = 0 OR NEW.closed_at IS NOT NULL THEN
    DELETE FROM rotations_due WHERE conversation_id = NEW.conversation_id;
    RETURN NULL;
  END IF;
  DELETE FROM rotations_due WHERE conversation_id = NEW.conversation_id AND epoch <> NEW.epoch;
  INSERT INTO rotations_due (conversation_id, epoch, due_writer_build, due_trace_id)
  VALUES (NEW.conversation_id, NEW.epoch, NEW.writer_build, NEW.last_write_trace_id)
  ON CONFLICT (conversation_id) DO UPDATE SET next_attempt_at = now(), version = rotations_due.version + 1;
  RETURN NULL;
END $$;
