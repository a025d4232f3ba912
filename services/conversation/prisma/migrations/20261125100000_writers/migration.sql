-- Which builds write, and when each last did, is asked of an index: new rows are anywhere in a table, and those of a build that was forgotten are few.
CREATE INDEX conversations_by_writer ON conversations (writer_build, created_at);
CREATE INDEX epochs_by_writer ON epochs (writer_build, committed_at);
CREATE INDEX roster_log_by_writer ON roster_log (writer_build, recorded_at);
CREATE INDEX session_decisions_by_writer ON session_decisions (writer_build, decided_at);
CREATE INDEX messages_by_writer ON messages (writer_build, sent_at);
