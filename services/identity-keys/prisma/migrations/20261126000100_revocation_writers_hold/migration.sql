-- Of the devices of before, too; reads and writes go on meanwhile.
ALTER TABLE devices
  VALIDATE CONSTRAINT devices_revocation_writer_build_check,
  VALIDATE CONSTRAINT devices_revocation_trace_id_check,
  VALIDATE CONSTRAINT devices_revocation_of_the_revoked;
