-- Which builds write, and when each last did, is asked of an index: new rows are anywhere in a table, and those of a build that was forgotten are few.
CREATE INDEX CONCURRENTLY IF NOT EXISTS key_requests_by_writer ON key_requests (writer_build, requested_at);
