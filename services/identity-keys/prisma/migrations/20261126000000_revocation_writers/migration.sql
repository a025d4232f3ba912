-- Which build revoked a device, and in which trace. What was revoked before, or is by an older build, does not say.
ALTER TABLE devices
  ADD COLUMN revocation_writer_build text CHECK (revocation_writer_build <> ''),
  ADD COLUMN revocation_trace_id     text CHECK (revocation_trace_id ~ '^([0-9a-f]{32})?$'),
  ADD CONSTRAINT devices_revocation_of_the_revoked
    CHECK (revoked_at IS NOT NULL OR num_nonnulls(revocation_writer_build, revocation_trace_id) = 0);
