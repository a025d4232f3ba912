-- By which build a key request was fulfilled. NULL for envelopes that a session was stored with, whose row says it, and for builds before this one.
ALTER TABLE envelopes ADD COLUMN IF NOT EXISTS writer_build text;

DROP TRIGGER envelopes_immutable ON envelopes;
CREATE TRIGGER envelopes_immutable BEFORE UPDATE OF
  conversation_id, session_id, user_id, device_id, attempt, key_request_id, sealer_user_id, sealer_device_id, sealer_identity_key,
  sealer_signing_key, sealer_root_key, sealer_suite, sealer_certified_at, sealer_certificate_signature, sealer_ephemeral_key,
  signed_prekey_id, one_time_prekey_id, kem_prekey_id, kem_ciphertext, ciphertext, signature, written_at, writer_build
  ON envelopes FOR EACH ROW EXECUTE FUNCTION refuse_session_change();
