-- Which build revoked a device, and in which trace. What was revoked before, or is by an older build, does not say.
-- NOT VALID, as looking at all devices takes its time under the lock; the next migration looks beside reads and writes.
ALTER TABLE devices
  ADD COLUMN revocation_writer_build text,
  ADD COLUMN revocation_trace_id     text,
  ADD CONSTRAINT devices_revocation_writer_build_check CHECK (revocation_writer_build <> '') NOT VALID,
  ADD CONSTRAINT devices_revocation_trace_id_check CHECK (revocation_trace_id ~ '^([0-9a-f]{32})?$') NOT VALID,
  ADD CONSTRAINT devices_revocation_of_the_revoked
    CHECK (revoked_at IS NOT NULL OR num_nonnulls(revocation_writer_build, revocation_trace_id) = 0) NOT VALID;
