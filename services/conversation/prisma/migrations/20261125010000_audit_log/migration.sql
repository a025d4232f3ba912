-- What operators looked at and did.
CREATE TABLE audit_log (
  number          bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  operator        text        NOT NULL CHECK (operator <> ''),
  action          text        NOT NULL CHECK (action ~ '^[a-z_]+$'),
  conversation_id uuid,
  user_id         text,
  note            text        NOT NULL CHECK (char_length(note) <= 500),
  -- done, or the reason of the refusal.
  outcome         text        NOT NULL CHECK (outcome = 'done' OR outcome ~ '^[A-Z_]+$'),
  trace_id        text        NOT NULL CHECK (trace_id ~ '^([0-9a-f]{32})?$'),
  happened_at     timestamptz NOT NULL DEFAULT clock_timestamp()
);
-- Rows are written in the order of their times.
CREATE INDEX audit_log_by_age ON audit_log USING brin (happened_at);

-- Only what is old may go; how old at least, no setting can change.
CREATE FUNCTION refuse_change_of_audit_log() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP = 'DELETE' THEN
    IF OLD.happened_at < now() - interval '30 days' THEN RETURN OLD; END IF;
  END IF;
  RAISE EXCEPTION 'what was recorded stays'
    USING ERRCODE = 'check_violation', CONSTRAINT = 'audit_log_only_grows', TABLE = TG_TABLE_NAME;
END $$;
CREATE TRIGGER audit_log_only_grows BEFORE UPDATE OR DELETE ON audit_log
  FOR EACH ROW EXECUTE FUNCTION refuse_change_of_audit_log();
CREATE TRIGGER audit_log_not_truncated BEFORE TRUNCATE ON audit_log
  FOR EACH STATEMENT EXECUTE FUNCTION refuse_change_of_audit_log();
