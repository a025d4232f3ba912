-- Which builds write, and when each last did, is asked of an index: new rows are anywhere in a table, and those of a build that was forgotten are few.
CREATE INDEX CONCURRENTLY IF NOT EXISTS roster_log_by_writer ON roster_log (writer_build, recorded_at);
