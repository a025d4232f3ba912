-- Erasures and the forgetting of claims find what they look for in steps of one size, however large the tables are.

-- Bytewise, so that all claims and request ids of a user's devices are one range of the primary key.
ALTER TABLE claims ALTER COLUMN caller TYPE text COLLATE "C";
ALTER TABLE request_ids ALTER COLUMN caller TYPE text COLLATE "C";

-- In the order of time, to go on at a time. A BRIN index cannot: its ranges never narrow again once vacuum has made room for new claims in old pages.
DROP INDEX claims_by_age;
CREATE INDEX claims_by_time ON claims (claimed_at);

-- How far the claims of others were looked through for the user.
ALTER TABLE erasures ADD COLUMN claims_seen_to timestamptz NOT NULL DEFAULT '-infinity';
