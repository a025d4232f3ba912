-- Erasures of users over all services, and their reports. While an erasure names its user, the user cannot come back.

CREATE TABLE erasures (
  erasure_id   uuid        NOT NULL PRIMARY KEY,
  user_id      text        CHECK (user_id ~ '^[A-Za-z0-9._:@-]{1,128}$'),
  -- All that the user ever had.
  device_ids   text[]      NOT NULL,
  requested_at timestamptz NOT NULL DEFAULT now(),
  -- When the other services were asked last.
  asked_at     timestamptz NOT NULL DEFAULT now(),
  completed_at timestamptz,
  CONSTRAINT erasures_name_their_user CHECK (user_id IS NOT NULL OR completed_at IS NOT NULL AND device_ids = '{}')
);
CREATE UNIQUE INDEX erasures_one_per_user ON erasures (user_id);
CREATE INDEX erasures_not_complete ON erasures (requested_at) WHERE completed_at IS NULL;

CREATE TABLE erasure_reports (
  erasure_id uuid        NOT NULL REFERENCES erasures (erasure_id),
  service    text        NOT NULL CHECK (service IN ('conversation', 'identity-keys', 'presence', 'session')),
  erased_at  timestamptz NOT NULL,
  PRIMARY KEY (erasure_id, service)
);
CREATE TABLE erasure_counts (
  erasure_id uuid   NOT NULL REFERENCES erasures (erasure_id),
  service    text   NOT NULL CHECK (service IN ('conversation', 'identity-keys', 'presence', 'session')),
  kind       text   NOT NULL CHECK (kind <> ''),
  erased     bigint NOT NULL DEFAULT 0 CHECK (erased >= 0),
  kept       bigint NOT NULL DEFAULT 0 CHECK (kept >= 0),
  PRIMARY KEY (erasure_id, service, kind)
);

-- Complete is what every service has reported, this one last, and only once nothing of the user is left here.
CREATE FUNCTION check_erasure_step() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF OLD.completed_at IS NOT NULL AND NEW.completed_at IS DISTINCT FROM OLD.completed_at
     OR OLD.user_id IS DISTINCT FROM NEW.user_id AND NEW.user_id IS NOT NULL THEN
    RAISE EXCEPTION 'an erasure goes forward' USING ERRCODE = 'check_violation', CONSTRAINT = 'erasures_go_forward', TABLE = TG_TABLE_NAME;
  END IF;
  IF OLD.completed_at IS NULL AND NEW.completed_at IS NOT NULL
     AND ((SELECT count(*) FROM erasure_reports WHERE erasure_id = NEW.erasure_id) <> 4
          OR EXISTS (SELECT FROM users WHERE user_id = NEW.user_id)) THEN
    RAISE EXCEPTION 'an erasure is complete when every service has reported and the user is gone'
      USING ERRCODE = 'check_violation', CONSTRAINT = 'erasures_complete_with_all_reports', TABLE = TG_TABLE_NAME;
  END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER erasures_step BEFORE UPDATE ON erasures FOR EACH ROW EXECUTE FUNCTION check_erasure_step();

-- An erased user does not come back. The lock is the one that DeleteUser takes: who looked before has committed by then.
CREATE FUNCTION refuse_erased_users() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_advisory_xact_lock_shared(hashtext('erasures'));
  IF EXISTS (SELECT FROM erasures WHERE user_id = NEW.user_id) THEN
    RAISE EXCEPTION 'the user has been erased'
      USING ERRCODE = 'check_violation', CONSTRAINT = 'not_of_erased_users', TABLE = TG_TABLE_NAME;
  END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER users_not_erased BEFORE INSERT ON users FOR EACH ROW EXECUTE FUNCTION refuse_erased_users();

-- Reports that could not be handled.
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
