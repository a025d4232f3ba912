-- What only code refused until now: prekeys for revoked devices, permissions of erased users, changes of recorded claims.

-- Uploads hold the device, and so does a revocation: who looks here sees what stands.
CREATE FUNCTION pools_of_active_devices() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF EXISTS (SELECT FROM (SELECT DISTINCT device_number FROM entered) e
              CROSS JOIN LATERAL (SELECT FROM devices d
                                   WHERE d.device_number = e.device_number AND d.revoked_at IS NOT NULL LIMIT 1) d) THEN
    RAISE EXCEPTION 'a revoked device gets no prekeys'
      USING ERRCODE = 'check_violation', CONSTRAINT = 'pools_of_active_devices', TABLE = TG_TABLE_NAME;
  END IF;
  RETURN NULL;
END $$;
CREATE TRIGGER pools_of_active_devices AFTER INSERT ON unclaimed_one_time_prekeys
  REFERENCING NEW TABLE AS entered FOR EACH STATEMENT EXECUTE FUNCTION pools_of_active_devices();
CREATE TRIGGER pools_of_active_devices AFTER INSERT ON unclaimed_one_time_kem_prekeys
  REFERENCING NEW TABLE AS entered FOR EACH STATEMENT EXECUTE FUNCTION pools_of_active_devices();

-- Both users of a permission, under the lock that DeleteUser takes.
CREATE FUNCTION refuse_permissions_of_erased_users() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_advisory_xact_lock_shared(hashtext('erasures'));
  IF EXISTS (SELECT FROM erasures WHERE user_id IN (NEW.user_id, NEW.target_user_id)) THEN
    RAISE EXCEPTION 'the user has been erased'
      USING ERRCODE = 'check_violation', CONSTRAINT = 'not_of_erased_users', TABLE = TG_TABLE_NAME;
  END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER claim_permissions_not_of_erased_users BEFORE INSERT OR UPDATE ON claim_permissions
  FOR EACH ROW EXECUTE FUNCTION refuse_permissions_of_erased_users();

-- A recorded claim is what repetitions are answered with. An erasure takes devices and users out of it; nothing else of the answer ever changes.
CREATE FUNCTION claims_only_forget() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF (NEW.caller, NEW.claim_id, NEW.devices_digest, NEW.not_permitted, NEW.device_list_versions, NEW.passed_over)
       IS DISTINCT FROM (OLD.caller, OLD.claim_id, OLD.devices_digest, OLD.not_permitted, OLD.device_list_versions, OLD.passed_over)
  OR cardinality(NEW.device_numbers) <> cardinality(OLD.device_numbers)
  OR cardinality(NEW.user_ids) IS DISTINCT FROM cardinality(OLD.user_ids)
  OR EXISTS (SELECT FROM unnest(OLD.device_numbers, OLD.signed_prekey_ids, OLD.last_resort_prekey_ids, OLD.one_time_prekey_ids, OLD.kem_prekey_ids)
                    WITH ORDINALITY AS o (device, signed, last_resort, one_time, kem, position)
               JOIN unnest(NEW.device_numbers, NEW.signed_prekey_ids, NEW.last_resort_prekey_ids, NEW.one_time_prekey_ids, NEW.kem_prekey_ids)
                    WITH ORDINALITY AS n (device, signed, last_resort, one_time, kem, position) USING (position)
              WHERE (n.device, n.signed, n.last_resort, n.one_time, n.kem) IS DISTINCT FROM (o.device, o.signed, o.last_resort, o.one_time, o.kem)
                AND num_nonnulls(n.device, n.signed, n.last_resort, n.one_time, n.kem) > 0)
  OR EXISTS (SELECT FROM unnest(OLD.user_ids) WITH ORDINALITY AS o (user_id, position)
               JOIN unnest(NEW.user_ids) WITH ORDINALITY AS n (user_id, position) USING (position)
              WHERE n.user_id <> o.user_id AND n.user_id <> '') THEN
    RAISE EXCEPTION 'a recorded claim only forgets'
      USING ERRCODE = 'check_violation', CONSTRAINT = 'claims_only_forget', TABLE = TG_TABLE_NAME;
  END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER claims_only_forget BEFORE UPDATE ON claims FOR EACH ROW EXECUTE FUNCTION claims_only_forget();
