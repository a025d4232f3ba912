-- Of the audit log, what is old may go; how old at least, no setting can change. All else stays as it was.

CREATE FUNCTION refuse_change_of_audit_log() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP = 'DELETE' THEN
    IF OLD.happened_at < now() - interval '30 days' THEN RETURN OLD; END IF;
  END IF;
  RAISE EXCEPTION 'what was recorded stays'
    USING ERRCODE = 'check_violation', CONSTRAINT = 'audit_log_only_grows', TABLE = TG_TABLE_NAME;
END $$;
DROP TRIGGER audit_log_only_grows ON audit_log;
CREATE TRIGGER audit_log_only_grows BEFORE UPDATE OR DELETE ON audit_log
  FOR EACH ROW EXECUTE FUNCTION refuse_change_of_audit_log();
CREATE TRIGGER audit_log_not_truncated BEFORE TRUNCATE ON audit_log
  FOR EACH STATEMENT EXECUTE FUNCTION refuse_change_of_audit_log();
-- Rows are written in the order of their times.
CREATE INDEX audit_log_by_age ON audit_log USING brin (happened_at);
