import type { Client } from 'pg';

export interface SeededSessions {
  readonly callers: readonly { readonly userId: string; readonly deviceId: string }[];
  readonly sessions: readonly { readonly conversationId: string; readonly sessionId: string }[];
}

const sessionCount = 1_000;
const callerCount = 16;

/** Sessions that each caller has an envelope of: of the right sizes, with random bytes for keys, as nobody opens them. Once in a database. */
export async function seedSessions(sql: Client): Promise<SeededSessions> {
  await sql.query(`CREATE FUNCTION pg_temp.bytes(length integer) RETURNS bytea LANGUAGE sql VOLATILE AS $$
    SELECT substr(decode(string_agg(md5(random()::text), ''), 'hex'), 1, length) FROM generate_series(0, length / 16) $$`);
  await sql.query('BEGIN');
  await sql.query(
    `INSERT INTO sessions (conversation_id, session_id, kind, epoch, initiator_user_id, initiator_device_id, header, header_signature,
       header_hash, initiator_identity_key, initiator_signing_key, initiator_ephemeral_key, initiator_root_key, initiator_suite,
       initiator_certified_at, initiator_certificate_signature, key_commitment, envelopes_expected, withholdings_expected,
       content_digest, writer_build, created_traceparent)
     SELECT md5('bench conversation ' || n)::uuid, 'session_' || n, 'NATIVE', 1, 'bench-user-1', 'phone', pg_temp.bytes(600 + 0 * n),
       pg_temp.bytes(64), pg_temp.bytes(32), pg_temp.bytes(32), pg_temp.bytes(32), pg_temp.bytes(32), pg_temp.bytes(32), 1, now(),
       pg_temp.bytes(64), pg_temp.bytes(32), $2, 0, pg_temp.bytes(32), 'bench', '00-00000000000000000000000000000001-0000000000000001-01'
     FROM generate_series(1, $1::integer) AS n ON CONFLICT DO NOTHING`,
    [sessionCount, callerCount],
  );
  await sql.query(
    `INSERT INTO envelopes (conversation_id, session_id, user_id, device_id, attempt, sealer_user_id, sealer_device_id,
       sealer_identity_key, sealer_signing_key, sealer_root_key, sealer_suite, sealer_certified_at, sealer_certificate_signature,
       sealer_ephemeral_key, signed_prekey_id, one_time_prekey_id, kem_prekey_id, kem_ciphertext, ciphertext, signature)
     SELECT md5('bench conversation ' || n)::uuid, 'session_' || n, 'bench-user-' || u, 'phone', 0, 'bench-user-1', 'phone',
       pg_temp.bytes(32), pg_temp.bytes(32), pg_temp.bytes(32), 1, now(), pg_temp.bytes(64), pg_temp.bytes(32), 1, n, n,
       pg_temp.bytes(1088), pg_temp.bytes(48), pg_temp.bytes(64)
     FROM generate_series(1, $1::integer) AS n, generate_series(1, $2::integer) AS u ON CONFLICT DO NOTHING`,
    [sessionCount, callerCount],
  );
  await sql.query('COMMIT');
  await sql.query('VACUUM ANALYZE sessions, envelopes');
  const { rows } = await sql.query<{ conversationId: string; sessionId: string }>(
    `SELECT md5('bench conversation ' || n)::uuid AS "conversationId", 'session_' || n AS "sessionId" FROM generate_series(1, $1::integer) AS n`,
    [sessionCount],
  );
  return {
    callers: Array.from({ length: callerCount }, (_, i) => ({ userId: `bench-user-${i + 1}`, deviceId: 'phone' })),
    sessions: rows,
  };
}
