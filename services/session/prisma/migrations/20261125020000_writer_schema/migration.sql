-- The newest migration that the writer of a session knew; NULL for builds before this one, and for imported rows. A build that is older than its
-- database is told by it long after it has gone.
ALTER TABLE sessions ADD COLUMN writer_schema text
  CONSTRAINT sessions_writer_schema_is_a_migration CHECK (writer_schema ~ '^[0-9]{14}_');
