import type { Client } from 'pg';

/** One conversation that all of these users are members of, in the database of the service conversation alone. */
export async function seedConversation(sql: Client, userIds: readonly string[]): Promise<void> {
  await sql.query('BEGIN');
  await sql.query(
    `INSERT INTO conversations (conversation_id, kind, history_policy, epoch, session_id, roster_version, writer_build, created_trace_id, last_write_trace_id)
     VALUES (md5('bench conversation')::uuid, 2, 1, 1, 'session-1', 1, 'bench', '', '')`,
  );
  await sql.query(
    `INSERT INTO session_decisions (conversation_id, session_id, outcome, writer_build, trace_id)
     VALUES (md5('bench conversation')::uuid, 'session-1', 'COMMITTED', 'bench', '')`,
  );
  await sql.query(
    `INSERT INTO epochs (conversation_id, epoch, session_id, roster_version, header_hash, initiator_user_id, initiator_device_id,
       envelopes_written, envelopes_expected, writer_build, trace_id, history_policy)
     VALUES (md5('bench conversation')::uuid, 1, 'session-1', 1, sha256('bench'), $1, 'phone', 1, 1, 'bench', '', 1)`,
    [userIds[0]],
  );
  await sql.query(
    `INSERT INTO memberships (conversation_id, user_id, role, from_epoch, from_roster_version)
     SELECT md5('bench conversation')::uuid, user_id, 1, 1, 1 FROM unnest($1::text[]) AS member (user_id)`,
    [userIds],
  );
  await sql.query(
    `INSERT INTO roster_log (conversation_id, roster_version, previous_hash, base, writer_build, trace_id)
     VALUES (md5('bench conversation')::uuid, 1, '', 'bench', 'bench', '')`,
  );
  await sql.query('COMMIT');
  await sql.query('ANALYZE memberships');
}
