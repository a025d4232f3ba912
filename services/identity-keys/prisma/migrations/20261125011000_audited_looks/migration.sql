-- The audit log also has what operators only looked at, and what they were refused. What was done says why, as before; who looks need not.
ALTER TABLE audit_log
  -- done, or the reason of the refusal. Builds from before write only what was done.
  ADD COLUMN outcome text NOT NULL DEFAULT 'done' CHECK (outcome = 'done' OR outcome ~ '^[A-Z_]+$'),
  DROP CONSTRAINT audit_log_note_check,
  ADD CONSTRAINT audit_log_note_check
    CHECK (char_length(note) <= 500 AND (note <> '' OR outcome <> 'done' OR action ~ '^(find|list)_'));
