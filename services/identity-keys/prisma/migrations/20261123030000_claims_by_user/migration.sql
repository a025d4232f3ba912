-- A claim by users: which ones, and the versions of their device lists that its devices are of; 0 for a user of whom nothing was told. What
-- stood at a version is in device_log. NULL for a claim by devices.
-- not_permitted are the positions, from 1, of devices that the claim policy kept from the caller; NULL when there are none.
ALTER TABLE claims
  ADD COLUMN user_ids             text[],
  ADD COLUMN device_list_versions bigint[],
  ADD COLUMN not_permitted        integer[],
  ADD CONSTRAINT claims_a_version_for_each_user
    CHECK (cardinality(user_ids) IS NOT DISTINCT FROM cardinality(device_list_versions) AND 0 <= ALL (device_list_versions)),
  ADD CONSTRAINT claims_not_permitted_are_positions
    CHECK (not_permitted <> '{}' AND 1 <= ALL (not_permitted) AND cardinality(device_numbers) >= ALL (not_permitted));

-- What the application permits where the claim policy wants a shared conversation or a permission.
CREATE TABLE claim_permissions (
  user_id        text        NOT NULL CHECK (user_id ~ '^[A-Za-z0-9._:@-]{1,128}$'),
  target_user_id text        NOT NULL CHECK (target_user_id ~ '^[A-Za-z0-9._:@-]{1,128}$'),
  expires_at     timestamptz NOT NULL,
  granted_by     text        NOT NULL CHECK (granted_by <> ''),
  granted_at     timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (user_id, target_user_id)
);
CREATE INDEX claim_permissions_of_target ON claim_permissions (target_user_id);
CREATE INDEX claim_permissions_by_expiry ON claim_permissions (expires_at);

-- When it was last told that a device is being drained: one row, so that all replicas together tell it once an hour.
CREATE TABLE drain_notices (
  device_number bigint      NOT NULL PRIMARY KEY REFERENCES devices (device_number) ON DELETE CASCADE,
  noticed_at    timestamptz NOT NULL
);
