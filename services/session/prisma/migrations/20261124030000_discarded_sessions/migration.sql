-- A session that was discarded stays so: a StoreSession that was on its way then must not leave one behind that nobody will ever commit or discard.
CREATE TABLE discarded_sessions (
  conversation_id uuid        NOT NULL,
  session_id      text        NOT NULL CHECK (session_id ~ '^[A-Za-z0-9._:-]{1,128}$'),
  discarded_at    timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (conversation_id, session_id)
);
CREATE INDEX discarded_sessions_discarded_at ON discarded_sessions (discarded_at);

-- Both take the session's lock until they commit: whoever stores either has committed before the discard looks for it, or finds it discarded.
CREATE FUNCTION lock_session_to_discard() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_advisory_xact_lock(hashtextextended(NEW.conversation_id || ' ' || NEW.session_id, 0));
  RETURN NEW;
END $$;
CREATE TRIGGER discarded_sessions_lock BEFORE INSERT ON discarded_sessions
  FOR EACH ROW EXECUTE FUNCTION lock_session_to_discard();

CREATE FUNCTION refuse_discarded_session() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_advisory_xact_lock_shared(hashtextextended(NEW.conversation_id || ' ' || NEW.session_id, 0));
  IF EXISTS (SELECT FROM discarded_sessions WHERE conversation_id = NEW.conversation_id AND session_id = NEW.session_id) THEN
    RAISE EXCEPTION 'the session was discarded'
      USING ERRCODE = 'check_violation', CONSTRAINT = 'sessions_not_discarded', TABLE = TG_TABLE_NAME;
  END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER sessions_not_discarded BEFORE INSERT ON sessions FOR EACH ROW EXECUTE FUNCTION refuse_discarded_session();
