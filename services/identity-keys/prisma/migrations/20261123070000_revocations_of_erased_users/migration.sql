-- The revocations of an erased user stay as long as the erasure names the user: whoever reads the list late still learns of them.

CREATE OR REPLACE FUNCTION refuse_change_of_record() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP = 'DELETE' AND TG_TABLE_NAME <> 'audit_log' THEN
    IF EXISTS (SELECT FROM users WHERE user_id = OLD.user_id AND erased_at IS NOT NULL) THEN RETURN OLD; END IF;
    IF TG_TABLE_NAME = 'revocations'
       AND NOT EXISTS (SELECT FROM users WHERE user_id = OLD.user_id)
       AND NOT EXISTS (SELECT FROM erasures WHERE user_id = OLD.user_id) THEN RETURN OLD; END IF;
  END IF;
  RAISE EXCEPTION 'what was recorded stays'
    USING ERRCODE = 'check_violation', CONSTRAINT = TG_NAME, TABLE = TG_TABLE_NAME;
END $$;

CREATE FUNCTION forget_revocations() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  DELETE FROM revocations WHERE user_id = OLD.user_id;
  RETURN NULL;
END $$;
CREATE TRIGGER erasures_forget_revocations AFTER UPDATE OF user_id ON erasures FOR EACH ROW
  WHEN (OLD.user_id IS NOT NULL AND NEW.user_id IS NULL) EXECUTE FUNCTION forget_revocations();
