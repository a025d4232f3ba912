-- Whether this database went back in time: docs/decisions/0037-restored-databases.md.
CREATE FUNCTION database_place() RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT concat_ws('/', (SELECT system_identifier FROM pg_control_system()), left(pg_walfile_name(pg_current_wal_lsn()), 8),
    (SELECT oid FROM pg_database WHERE datname = current_database()))
$$;

CREATE FUNCTION server_started() RETURNS text LANGUAGE sql STABLE AS $$
  SELECT extract(epoch FROM pg_postmaster_start_time())::text
$$;

CREATE TABLE restore_fence (
  one         boolean NOT NULL PRIMARY KEY DEFAULT true CHECK (one),
  incarnation uuid    NOT NULL DEFAULT gen_random_uuid(),
  position    bigint  NOT NULL DEFAULT 0 CHECK (position >= 0),
  place       text    NOT NULL CHECK (place <> ''),
  closed      boolean NOT NULL DEFAULT false
);
INSERT INTO restore_fence (place) VALUES (database_place());

-- Each time that the database was found to have gone back. incarnation is the one that begins once it is handled.
CREATE TABLE database_restores (
  incarnation       uuid        NOT NULL PRIMARY KEY,
  ended_incarnation uuid        NOT NULL,
  because           text        NOT NULL CHECK (because <> ''),
  found_place       text        NOT NULL,
  position_found    bigint      NOT NULL,
  position_expected bigint      NOT NULL,
  noticed_at        timestamptz NOT NULL DEFAULT now(),
  handled_at        timestamptz CHECK (handled_at >= noticed_at),
  accepted_at       timestamptz CHECK (accepted_at >= handled_at),
  accepted_by       text        CHECK ((accepted_by IS NULL) = (accepted_at IS NULL)),
  accepted_note     text        CHECK ((accepted_note IS NULL) = (accepted_at IS NULL))
);
CREATE UNIQUE INDEX database_restores_one_at_a_time ON database_restores ((true)) WHERE handled_at IS NULL;

-- It goes forward within an incarnation, and opens only into the incarnation that the restore at hand begins.
CREATE FUNCTION restore_fence_goes_forward() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF NEW.position < OLD.position
  OR NEW.incarnation <> OLD.incarnation AND NOT (OLD.closed AND NOT NEW.closed AND EXISTS (
       SELECT FROM database_restores r WHERE r.incarnation = NEW.incarnation AND r.ended_incarnation = OLD.incarnation AND r.handled_at IS NULL))
  OR OLD.closed AND NOT NEW.closed AND NEW.incarnation = OLD.incarnation THEN
    RAISE EXCEPTION 'the fence goes forward, and opens only with a new incarnation'
      USING ERRCODE = 'check_violation', CONSTRAINT = 'restore_fence_goes_forward', TABLE = TG_TABLE_NAME;
  END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER restore_fence_goes_forward BEFORE UPDATE ON restore_fence FOR EACH ROW EXECUTE FUNCTION restore_fence_goes_forward();

-- For statements that must not run on a database that went back: they name what their process knows of it. The place is found out once for each
-- connection, as no other than a new one can lead elsewhere. What is not known (NULL) is not compared.
CREATE FUNCTION pass_restore_fence(known_incarnation uuid, known_position bigint, known_start text) RETURNS boolean LANGUAGE plpgsql VOLATILE AS $$
DECLARE
  here text := current_setting('keytrail.place', true);
BEGIN
  IF coalesce(here, '') = '' THEN
    here := database_place();
    PERFORM set_config('keytrail.place', here, false);
  END IF;
  PERFORM FROM restore_fence f
    WHERE f.place = here AND NOT f.closed AND f.incarnation = coalesce(known_incarnation, f.incarnation) AND f.position >= coalesce(known_position, 0)
      AND (known_start IS NULL OR known_start = server_started());
  IF NOT FOUND THEN
    RAISE EXCEPTION 'the database does not stand where it is known to have stood'
      USING ERRCODE = 'check_violation', CONSTRAINT = 'restore_fence_is_passed', TABLE = 'restore_fence';
  END IF;
  RETURN true;
END $$;
