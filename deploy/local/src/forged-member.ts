import pg from 'pg';

/**
 * What a hostile database can do: `userId` becomes a member of a conversation, with an entry of the roster's log that is a copy of the first
 * one, for nobody signed another. Every constraint holds. `url` is the database of conversation.
 */
export async function forgeMember(url: string, conversationId: string, userId: string): Promise<void> {
  const database = new pg.Client({ connectionString: url });
  await database.connect();
  try {
    await database.query('BEGIN');
    await database.query('UPDATE conversations SET roster_version = 2 WHERE conversation_id = $1', [conversationId]);
    await database.query(
      `INSERT INTO memberships (conversation_id, user_id, role, from_epoch, from_roster_version) VALUES ($1, $2, 2, 2, 2)`,
      [conversationId, userId],
    );
    await database.query(
      `INSERT INTO roster_log (conversation_id, roster_version, previous_version, previous_hash, change, signature, author_user_id,
         author_device_id, author_identity_key, author_signing_key, certificate_root_key, certified_at, certificate_signature,
         writer_build, trace_id)
       SELECT conversation_id, 2, 1, entry_hash, change, signature, author_user_id, author_device_id, author_identity_key,
         author_signing_key, certificate_root_key, certified_at, certificate_signature, writer_build, trace_id
       FROM roster_log WHERE conversation_id = $1`,
      [conversationId],
    );
    await database.query('COMMIT');
  } finally {
    await database.end();
  }
}
