-- Which builds write, and when each last did, is asked of an index: new rows are anywhere in a table, and those of a build that was forgotten are few.
CREATE INDEX CONCURRENTLY IF NOT EXISTS epochs_by_writer ON epochs (writer_build, committed_at);
