-- Users, their root keys, and the version of their device lists.
CREATE TABLE users (
  user_id             text        NOT NULL PRIMARY KEY CHECK (user_id ~ '^[A-Za-z0-9._:@-]{1,128}$'),
  root_key            bytea       NOT NULL CHECK (octet_length(root_key) = 32),
  device_list_version bigint      NOT NULL CHECK (device_list_version >= 0),
  created_at          timestamptz NOT NULL DEFAULT now(),
  CONSTRAINT users_root_key_of_user UNIQUE (user_id, root_key)
);

-- A device row exists only with its whole key set: the two foreign keys at the end of this file make it impossible to commit one
-- without its current signed prekey and last-resort prekey. The certificate's root key is the user's, by foreign key.
CREATE TABLE devices (
  device_number                 bigint      NOT NULL GENERATED ALWAYS AS IDENTITY CONSTRAINT devices_number UNIQUE,
  user_id                       text        NOT NULL,
  device_id                     text        NOT NULL CHECK (device_id ~ '^[A-Za-z0-9._:@-]{1,64}$'),
  suite                         smallint    NOT NULL CHECK (suite = 1),
  identity_key                  bytea       NOT NULL CHECK (octet_length(identity_key) = 32),
  signing_key                   bytea       NOT NULL CHECK (octet_length(signing_key) = 32),
  certificate_root_key          bytea       NOT NULL,
  certificate_signature         bytea       NOT NULL CHECK (octet_length(certificate_signature) = 64),
  certified_at                  timestamptz NOT NULL,
  current_signed_prekey_id      bigint      NOT NULL,
  current_last_resort_prekey_id bigint      NOT NULL,
  one_time_prekeys_added        bigint      NOT NULL DEFAULT 0 CHECK (one_time_prekeys_added >= 0),
  kem_prekeys_added             bigint      NOT NULL DEFAULT 0 CHECK (kem_prekeys_added >= 0),
  registered_keys_digest        bytea       NOT NULL CHECK (octet_length(registered_keys_digest) = 32),
  added_in_version              bigint      NOT NULL CHECK (added_in_version >= 1),
  added_at                      timestamptz NOT NULL DEFAULT now(),
  revoked_at                    timestamptz CHECK (revoked_at >= added_at),
  writer_build                  text        NOT NULL CHECK (writer_build <> ''),
  created_trace_id              text        NOT NULL CHECK (created_trace_id ~ '^([0-9a-f]{32})?$'),
  PRIMARY KEY (user_id, device_id),
  CONSTRAINT devices_one_per_version UNIQUE (user_id, added_in_version),
  CONSTRAINT devices_certified_by_root_key FOREIGN KEY (user_id, certificate_root_key) REFERENCES users (user_id, root_key)
);

-- Prekeys stay after they were claimed or replaced: the row is the trace that keeps its id from ever naming another key, and what
-- a repeated claim is answered from. What is still to be handed out stands in the unclaimed_ tables.
CREATE TABLE signed_prekeys (
  device_number bigint      NOT NULL REFERENCES devices (device_number),
  key_id        bigint      NOT NULL CHECK (key_id BETWEEN 1 AND 4294967295),
  public_key    bytea       NOT NULL CHECK (octet_length(public_key) = 32),
  signature     bytea       NOT NULL CHECK (octet_length(signature) = 64),
  added_at      timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (device_number, key_id)
);

CREATE TABLE last_resort_prekeys (
  device_number bigint      NOT NULL REFERENCES devices (device_number),
  key_id        bigint      NOT NULL CHECK (key_id BETWEEN 1 AND 4294967295),
  public_key    bytea       NOT NULL CHECK (octet_length(public_key) = 1184),
  signature     bytea       NOT NULL CHECK (octet_length(signature) = 64),
  added_at      timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (device_number, key_id)
);

CREATE TABLE one_time_prekeys (
  device_number bigint NOT NULL REFERENCES devices (device_number),
  key_id        bigint NOT NULL CHECK (key_id BETWEEN 1 AND 4294967295),
  public_key    bytea  NOT NULL CHECK (octet_length(public_key) = 32),
  PRIMARY KEY (device_number, key_id)
);

CREATE TABLE one_time_kem_prekeys (
  device_number bigint NOT NULL REFERENCES devices (device_number),
  key_id        bigint NOT NULL CHECK (key_id BETWEEN 1 AND 4294967295),
  public_key    bytea  NOT NULL CHECK (octet_length(public_key) = 1184),
  signature     bytea  NOT NULL CHECK (octet_length(signature) = 64),
  PRIMARY KEY (device_number, key_id)
);

-- The pools: one narrow row for each prekey that nobody has claimed. seq counts a device's uploads from 1 without gaps, up to
-- devices.…_prekeys_added: keys are issued in that order, and the distance to the end tells how many are left without counting.
-- Claiming deletes the row.
CREATE TABLE unclaimed_one_time_prekeys (
  device_number bigint NOT NULL,
  seq           bigint NOT NULL CHECK (seq >= 1),
  key_id        bigint NOT NULL,
  PRIMARY KEY (device_number, seq),
  FOREIGN KEY (device_number, key_id) REFERENCES one_time_prekeys (device_number, key_id)
) WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_insert_scale_factor = 0.05);

CREATE TABLE unclaimed_one_time_kem_prekeys (
  device_number bigint NOT NULL,
  seq           bigint NOT NULL CHECK (seq >= 1),
  key_id        bigint NOT NULL,
  PRIMARY KEY (device_number, seq),
  FOREIGN KEY (device_number, key_id) REFERENCES one_time_kem_prekeys (device_number, key_id)
) WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_insert_scale_factor = 0.05);

-- One row for each claim, by position of the devices in the request: which device, and which of its keys. A device without a
-- number is unknown, one without a signed prekey was revoked, one without a one-time KEM prekey got the last-resort prekey.
CREATE TABLE claims (
  caller                 text        NOT NULL,
  claim_id               uuid        NOT NULL,
  devices_digest         bytea       NOT NULL CHECK (octet_length(devices_digest) = 32),
  device_numbers         bigint[]    NOT NULL,
  signed_prekey_ids      bigint[]    NOT NULL CHECK (cardinality(signed_prekey_ids) = cardinality(device_numbers)),
  last_resort_prekey_ids bigint[]    NOT NULL CHECK (cardinality(last_resort_prekey_ids) = cardinality(device_numbers)),
  one_time_prekey_ids    bigint[]    NOT NULL CHECK (cardinality(one_time_prekey_ids) = cardinality(device_numbers)),
  kem_prekey_ids         bigint[]    NOT NULL CHECK (cardinality(kem_prekey_ids) = cardinality(device_numbers)),
  claimed_at             timestamptz NOT NULL DEFAULT now(),
  passed_over            boolean     NOT NULL CONSTRAINT claims_never_pass_over_a_locked_prekey CHECK (NOT passed_over),
  PRIMARY KEY (caller, claim_id)
);
CREATE INDEX claims_by_age ON claims USING brin (claimed_at);

-- When a device was last told that a pool is low, and how many prekeys it had added by then: an exhausted pool does not make an
-- event of every claim, and a pool that was filled and runs low again does make one.
CREATE TABLE low_prekey_notices (
  device_number bigint      NOT NULL PRIMARY KEY REFERENCES devices (device_number),
  prekeys_added bigint      NOT NULL,
  noticed_at    timestamptz NOT NULL
);

ALTER TABLE devices
  ADD CONSTRAINT devices_have_a_signed_prekey
    FOREIGN KEY (device_number, current_signed_prekey_id) REFERENCES signed_prekeys (device_number, key_id) DEFERRABLE INITIALLY DEFERRED,
  ADD CONSTRAINT devices_have_a_last_resort_prekey
    FOREIGN KEY (device_number, current_last_resort_prekey_id) REFERENCES last_resort_prekeys (device_number, key_id) DEFERRABLE INITIALLY DEFERRED;

-- Request ids, the compatibility floor, and the outbox, as @keytrail/storage and @keytrail/events need them.
CREATE TABLE request_ids (
  caller text NOT NULL,
  request_id uuid NOT NULL,
  method text NOT NULL,
  content_digest bytea NOT NULL CHECK (octet_length(content_digest) = 32),
  response bytea,
  created_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (caller, request_id)
);
CREATE INDEX request_ids_created_at ON request_ids (created_at);

CREATE TABLE schema_floor (
  one boolean PRIMARY KEY DEFAULT true CHECK (one),
  migration text NOT NULL
);
INSERT INTO schema_floor (migration) VALUES ('');

CREATE TABLE outbox (
  seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  id text NOT NULL DEFAULT gen_random_uuid()::text,
  aggregate text NOT NULL,
  partition smallint NOT NULL CHECK (partition BETWEEN 0 AND 15),
  subject text NOT NULL,
  payload bytea NOT NULL CHECK (octet_length(payload) <= 524288),
  traceparent text NOT NULL DEFAULT '',
  created_at timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_insert_scale_factor = 0);
