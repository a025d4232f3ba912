-- Which builds write, and when each last did, is asked of an index: new rows are anywhere in a table, and those of a build that was forgotten are few.
CREATE INDEX CONCURRENTLY IF NOT EXISTS sessions_by_writer ON sessions (writer_build, created_at);
