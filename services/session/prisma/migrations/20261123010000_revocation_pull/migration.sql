-- Up to which revocation of identity-keys, by its number, the list of revoked devices is complete. Events only make entries come sooner.
CREATE TABLE revocation_pull (
  one boolean PRIMARY KEY DEFAULT true CHECK (one),
  complete_to bigint NOT NULL CHECK (complete_to >= 0)
);
INSERT INTO revocation_pull (complete_to) VALUES (0);

-- A reader that went back would only read again; one that jumped ahead would miss revocations for good, so nothing but the pull writes here.
CREATE FUNCTION refuse_pull_to_go_back() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF NEW.complete_to < OLD.complete_to THEN
    RAISE EXCEPTION 'the list of revoked devices does not become less complete'
      USING ERRCODE = 'check_violation', CONSTRAINT = 'revocation_pull_moves_forward', TABLE = TG_TABLE_NAME;
  END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER revocation_pull_moves_forward BEFORE UPDATE ON revocation_pull
  FOR EACH ROW EXECUTE FUNCTION refuse_pull_to_go_back();
CREATE FUNCTION refuse_revocation_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'a revocation stands'
    USING ERRCODE = 'check_violation', CONSTRAINT = 'revoked_devices_never_change', TABLE = TG_TABLE_NAME;
END $$;
CREATE TRIGGER revoked_devices_never_change BEFORE UPDATE ON revoked_devices
  FOR EACH ROW EXECUTE FUNCTION refuse_revocation_change();
