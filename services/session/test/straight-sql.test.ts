import { randomUUID } from 'node:crypto';
import { ensurePostgres, type ServerHandle } from '@keytrail/local';
import { createServiceDatabase, type Database, migrateDatabase, openDatabase } from '@keytrail/storage';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { advance } from '../src/domain/key-request.ts';
import { migrationsFolder } from '../src/service.ts';
import { readOpenKeyRequest, saveKeyRequest } from '../src/store/key-requests.ts';

let postgres: ServerHandle;
let db: Database;
beforeAll(async () => {
  postgres = await ensurePostgres();
  const name = `session_${randomUUID().replaceAll('-', '').slice(0, 12)}`;
  const url = await createServiceDatabase({ adminUrl: postgres.url, name, role: name, password: 'secret' });
  await migrateDatabase({ url, migrations: migrationsFolder });
  db = openDatabase({ url, service: 'session', connections: 4, statementTimeoutMs: 5_000 });
});
afterAll(async () => {
  await db?.close();
  await postgres?.stop();
});

type Columns = Readonly<Record<string, unknown>>;

/** Runs inserts in one transaction, commits, and returns the constraint that refused; undefined when it stands. */
async function refusedBy(
  ...rows: readonly (readonly [table: string, columns: Columns])[]
): Promise<string | undefined> {
  const client = await db.pool.connect();
  try {
    await client.query('BEGIN');
    for (const [table, columns] of rows) {
      const places = Object.keys(columns).map((_, index) => `$${index + 1}`);
      const text = `INSERT INTO ${table} (${Object.keys(columns)}) VALUES (${places})`;
      await client.query(text, Object.values(columns));
    }
    await client.query('COMMIT');
    return undefined;
  } catch (error) {
    await client.query('ROLLBACK');
    const { constraint } = error as { constraint?: string };
    if (constraint === undefined) throw error;
    return constraint;
  } finally {
    client.release();
  }
}

const bytes = (length: number) => Buffer.alloc(length, 1);

function session(changes: Columns = {}): [string, Columns] {
  const columns = {
    conversation_id: randomUUID(),
    session_id: 's',
    kind: 'NATIVE',
    epoch: 1,
    initiator_user_id: 'u',
    initiator_device_id: 'd',
    header: bytes(1),
    header_signature: bytes(64),
    header_hash: bytes(32),
    initiator_identity_key: bytes(32),
    initiator_signing_key: bytes(32),
    initiator_ephemeral_key: bytes(32),
    initiator_root_key: bytes(32),
    initiator_suite: 1,
    initiator_certified_at: new Date(),
    initiator_certificate_signature: bytes(64),
    key_commitment: bytes(32),
    envelopes_expected: 1,
    withholdings_expected: 0,
    content_digest: bytes(32),
    writer_build: 'build',
    created_traceparent: '',
  };
  return ['sessions', { ...columns, ...changes }];
}

function envelope(conversationId: unknown, changes: Columns = {}): [string, Columns] {
  const columns = {
    conversation_id: conversationId,
    session_id: 's',
    user_id: 'u',
    device_id: 'd',
    attempt: 0,
    sealer_user_id: 'u',
    sealer_device_id: 'd',
    sealer_identity_key: bytes(32),
    sealer_signing_key: bytes(32),
    sealer_root_key: bytes(32),
    sealer_suite: 1,
    sealer_certified_at: new Date(0),
    sealer_certificate_signature: bytes(64),
    sealer_ephemeral_key: bytes(32),
    signed_prekey_id: 1,
    one_time_prekey_id: 0,
    kem_prekey_id: 1,
    kem_ciphertext: bytes(1088),
    ciphertext: bytes(48),
    signature: bytes(64),
  };
  return ['envelopes', { ...columns, ...changes }];
}

function keyRequest(conversationId: unknown, changes: Columns = {}): [string, Columns] {
  const columns = {
    key_request_id: randomUUID(),
    conversation_id: conversationId,
    session_id: 's',
    epoch: 1,
    user_id: 'u',
    device_id: 'late',
    kind: 'MISSING',
    state: 'WAITING_FOR_HOLDER',
    attempt_base: 0,
    attempt: 0,
    holders: 1,
    requested_at: new Date(),
    next_attempt_at: new Date(),
    expires_at: new Date(Date.now() + 60_000),
    traceparent: '',
    writer_build: 'build',
  };
  return ['key_requests', { ...columns, ...changes }];
}

/** Stores a whole session and returns its conversation. */
async function storedSession(): Promise<string> {
  const [table, columns] = session();
  expect(await refusedBy([table, columns], envelope(columns.conversation_id))).toBeUndefined();
  return String(columns.conversation_id);
}

describe('the database, by straight SQL,', () => {
  it('refuses an otherwise whole session without its ephemeral key', async () => {
    for (const key of [null, bytes(31)]) {
      const [table, columns] = session({ initiator_ephemeral_key: key });
      expect(await refusedBy([table, columns], envelope(columns.conversation_id))).toBe('sessions_native_is_complete');
    }
  });

  it('refuses a session whose writer names no migration, and takes one of a build that names none', async () => {
    const [table, columns] = session({ writer_schema: 'newest' });
    expect(await refusedBy([table, columns], envelope(columns.conversation_id))).toBe(
      'sessions_writer_schema_is_a_migration',
    );
    await storedSession();
  });

  it("refuses a session without its initiator's whole certificate", async () => {
    for (const change of [
      { initiator_root_key: null },
      { initiator_root_key: bytes(31) },
      { initiator_suite: null },
      { initiator_certified_at: null },
      { initiator_certificate_signature: null },
      { initiator_certificate_signature: bytes(63) },
    ]) {
      const [table, columns] = session(change);
      expect(await refusedBy([table, columns], envelope(columns.conversation_id))).toBe('sessions_native_is_complete');
      const imported = { kind: 'IMPORTED', imported_from: 'an older server', envelopes_expected: 0, ...change };
      expect(await refusedBy(session(imported))).toBe('sessions_imported_is_marked');
    }
    const none = {
      initiator_root_key: null,
      initiator_suite: null,
      initiator_certified_at: null,
      initiator_certificate_signature: null,
    };
    const imported = { kind: 'IMPORTED', imported_from: 'an older server', envelopes_expected: 0, ...none };
    expect(await refusedBy(session(imported))).toBeUndefined();
  });

  it('refuses an imported session with a malformed ephemeral key, or without its origin', async () => {
    const imported = { kind: 'IMPORTED', imported_from: 'an older server', envelopes_expected: 0 };
    expect(await refusedBy(session({ ...imported, initiator_ephemeral_key: null }))).toBeUndefined();
    expect(await refusedBy(session({ ...imported, imported_from: null }))).toBe('sessions_imported_is_marked');
    expect(await refusedBy(session({ ...imported, initiator_ephemeral_key: bytes(31) }))).toBe(
      'sessions_imported_is_marked',
    );
  });

  it('refuses to exchange the ephemeral key of a stored session, or its content', async () => {
    const conversationId = await storedSession();
    const other = Buffer.alloc(32, 2);
    for (const column of ['initiator_ephemeral_key', 'key_commitment', 'header_hash', 'content_digest']) {
      const changed = await db.pool
        .query(`UPDATE sessions SET ${column} = $2 WHERE conversation_id = $1`, [conversationId, other])
        .catch((error: { constraint?: string }) => error.constraint);
      expect(changed).toBe('sessions_immutable');
    }
  });

  it('refuses a second open request of a device for a session', async () => {
    const conversationId = await storedSession();
    expect(await refusedBy(keyRequest(conversationId))).toBeUndefined();
    expect(await refusedBy(keyRequest(conversationId))).toBe('key_requests_one_open');
    expect(await refusedBy(keyRequest(conversationId, { device_id: 'other' }))).toBeUndefined();
  });

  it('refuses a request that ended without saying why, or says why without having ended', async () => {
    const conversationId = await storedSession();
    for (const ending of [
      { state: 'EXPIRED' },
      { state: 'EXPIRED', ended_at: new Date() },
      { state: 'CANCELLED', ended_because: 'cancelled_by_requester' },
      { ended_at: new Date(), ended_because: 'expired' },
    ])
      expect(await refusedBy(keyRequest(conversationId, ending))).toBe('key_requests_ended_says_why');
  });

  it('refuses a fulfilled request without its accepted attempt, and an accepted attempt of another end', async () => {
    const conversationId = await storedSession();
    const ended = { ended_at: new Date(), ended_because: 'key_delivered' };
    const fulfilled = { state: 'FULFILLED', ...ended };
    expect(await refusedBy(keyRequest(conversationId, fulfilled))).toBe('key_requests_fulfilled_by_attempt');
    const expired = { state: 'EXPIRED', ...ended, accepted_attempt: 1 };
    expect(await refusedBy(keyRequest(conversationId, expired))).toBe('key_requests_fulfilled_by_attempt');
  });

  it('refuses a second envelope of one attempt of a request, whoever it is for', async () => {
    const conversationId = await storedSession();
    const [table, request] = keyRequest(conversationId);
    const ofRequest = { key_request_id: request.key_request_id, attempt: 1 };
    const first = envelope(conversationId, { ...ofRequest, device_id: 'late' });
    expect(await refusedBy([table, request], first)).toBeUndefined();
    const second = envelope(conversationId, { ...ofRequest, device_id: 'another' });
    expect(await refusedBy(second)).toBe('envelopes_one_per_attempt');
  });

  it('refuses a later envelope that no request asked for', async () => {
    const conversationId = await storedSession();
    expect(await refusedBy(envelope(conversationId, { attempt: 1 }))).toBe('envelopes_of_request');
  });
});

it('a decision on a request that has changed since is void', async () => {
  const conversationId = await storedSession();
  expect(await refusedBy(keyRequest(conversationId))).toBeUndefined();
  const opened = await readOpenKeyRequest(db, conversationId, 's', { userId: 'u', deviceId: 'late' });
  if (!opened) throw new Error('the request is open');
  const now = new Date();
  const cancelled = advance(opened, { kind: 'cancelled' }, now);
  const waiting = advance(opened, { kind: 'nobody_online', holders: 1, until: now }, now);
  expect(await db.transaction((tx) => saveKeyRequest(tx, cancelled, opened.version))).toBe(true);
  expect(await db.transaction((tx) => saveKeyRequest(tx, waiting, opened.version))).toBe(false);
  const { rows } = await db.pool.query('SELECT state FROM key_requests WHERE key_request_id = $1', [
    opened.keyRequestId,
  ]);
  expect(rows).toEqual([{ state: 'CANCELLED' }]);
});
