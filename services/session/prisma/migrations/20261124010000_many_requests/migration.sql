-- Many requests of one device: what is looked at first, who waits for a turn, and what was wrong with an envelope.

-- Compared among the requests of one device. By name: FOREGROUND sorts after BACKGROUND.
ALTER TABLE key_requests ADD COLUMN priority text NOT NULL DEFAULT 'BACKGROUND'
  CONSTRAINT key_requests_priority_known CHECK (priority IN ('BACKGROUND', 'FOREGROUND'));
-- Since when a request waits for its turn: holders are online, but have been offered as much of its requester as may be at once.
ALTER TABLE key_requests ADD COLUMN queued_at timestamptz;
CREATE INDEX key_requests_queued ON key_requests (user_id, device_id, priority DESC, requested_at, key_request_id)
  WHERE state = 'WAITING_FOR_HOLDER' AND queued_at IS NOT NULL;

-- Among the offers of one requester to one holder, which is to be seen to first. Holders take the first of all requesters, then the second.
ALTER TABLE offers ADD COLUMN turn integer NOT NULL DEFAULT 1 CONSTRAINT offers_have_a_turn CHECK (turn >= 1);

-- A rejection of an older build says no reason.
ALTER TABLE envelopes ADD COLUMN rejected_because text
  CONSTRAINT envelopes_rejection_reason_known CHECK (rejected_because IN ('COMMITMENT', 'SIGNATURE', 'CERTIFICATE', 'CANNOT_OPEN'));
ALTER TABLE envelopes ADD CONSTRAINT envelopes_rejected_for_a_reason CHECK (rejected_because IS NULL OR rejected_at IS NOT NULL);
