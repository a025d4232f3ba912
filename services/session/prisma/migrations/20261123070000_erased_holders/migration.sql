-- As before for recipients; and a key request is not answered by a user who is erased. Sealers of whole sessions are not looked at: who
-- made a session is kept, as its recipients open it by that.
CREATE FUNCTION refuse_envelopes_of_erased_users() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_advisory_xact_lock_shared(hashtext('erasures'));
  IF EXISTS (SELECT FROM added a JOIN erasures e ON e.user_id = a.user_id)
     OR EXISTS (SELECT FROM added a JOIN erasures e ON e.user_id = a.sealer_user_id WHERE a.attempt > 0) THEN
    RAISE EXCEPTION 'the user has been erased'
      USING ERRCODE = 'check_violation', CONSTRAINT = 'not_of_erased_users', TABLE = TG_TABLE_NAME;
  END IF;
  RETURN NULL;
END $$;
CREATE OR REPLACE TRIGGER envelopes_not_of_erased_users AFTER INSERT ON envelopes
  REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION refuse_envelopes_of_erased_users();

-- Callers are found by the user that they begin with, as a range: that holds in the order of bytes only, whatever the cluster's is.
ALTER TABLE request_ids ALTER COLUMN caller TYPE text COLLATE "C";
