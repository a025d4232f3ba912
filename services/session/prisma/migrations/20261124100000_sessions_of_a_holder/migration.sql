-- What waits for a device that attaches is looked for by what the device has, and not by all that waits.
CREATE INDEX envelopes_of_holder ON envelopes (user_id, device_id, conversation_id, session_id);
