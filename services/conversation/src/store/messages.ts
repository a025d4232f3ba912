import type { RotationDueReason } from '@keytrail/contracts';
import { type Queryable, statement, type Transaction } from '@keytrail/storage';
import type { EpochRange } from '../domain/entitlement.ts';

const findByCounter = statement(
  'message_find_by_counter',
  `SELECT sequence, ciphertext, signature FROM messages
   WHERE conversation_id = $1 AND session_id = $2 AND sender_user_id = $3 AND sender_device_id = $4 AND sender_counter = $5`,
);

// MESSAGE_COUNT (6) outweighs AGE (5), and that nothing. One statement either way: the row has where the epoch began, and when.
const append = statement(
  'message_append',
  `WITH next AS (
     UPDATE conversations SET last_sequence = last_sequence + 1,
       rotation_due = CASE
         WHEN $10::bigint > 0 AND last_sequence + 1 - epoch_began_sequence >= $10 AND rotation_due IN (0, 5) THEN 6
         WHEN $11::bigint > 0 AND rotation_due = 0 AND epoch_began_at <= now() - $11 * interval '1 millisecond' THEN 5
         ELSE rotation_due
       END
     WHERE conversation_id = $1 RETURNING last_sequence, rotation_due
   )
   INSERT INTO messages (conversation_id, sequence, epoch, session_id, sender_user_id, sender_device_id, sender_counter,
     ciphertext, signature, writer_build)
   SELECT $1, last_sequence, $2, $3, $4, $5, $6, $7, $8, $9 FROM next
   RETURNING sequence, (SELECT rotation_due FROM next) AS rotation_due`,
);

// A page ends before the row that would make it too large or too long, but has at least one; `found` counts one row more.
const page = statement(
  'messages_page',
  `SELECT sequence, epoch, session_id, sender_user_id, sender_device_id, sender_counter, ciphertext, signature, sent_at, erased_at, found
   FROM (
     SELECT candidate.*, count(*) OVER () AS found, row_number() OVER (ORDER BY sequence) AS place,
       sum(octet_length(ciphertext)) OVER (ORDER BY sequence) AS bytes
     FROM (
       SELECT * FROM messages m
       WHERE conversation_id = $1 AND sequence > $2
         AND EXISTS (
           SELECT FROM unnest($3::bigint[], $4::bigint[]) AS readable (first, last)
           WHERE m.epoch >= readable.first AND (readable.last IS NULL OR m.epoch <= readable.last)
         )
       ORDER BY sequence LIMIT $5::int + 1
     ) AS candidate
   ) AS measured
   WHERE place = 1 OR (place <= $5 AND bytes <= $6)
   ORDER BY sequence`,
);

/** A message as it comes. */
export interface NewMessage {
  readonly conversationId: string;
  readonly sessionId: string;
  readonly epoch: bigint;
  readonly sender: { readonly userId: string; readonly deviceId: string };
  readonly senderCounter: bigint;
  readonly ciphertext: Uint8Array;
  readonly signature: Uint8Array;
}

export interface StoredMessage {
  readonly sequence: bigint;
  readonly epoch: bigint;
  readonly sessionId: string;
  readonly sender: { readonly userId: string; readonly deviceId: string };
  readonly senderCounter: bigint;
  readonly ciphertext: Uint8Array;
  readonly signature: Uint8Array;
  readonly sentAt: Date;
  /** When its sender was erased: then it has no content, and the sender says nothing. */
  readonly erasedAt?: Date | undefined;
}

/** What a device sent under a session with a counter, if it used it. */
export async function messageWithCounter(
  db: Queryable,
  message: Omit<NewMessage, 'epoch' | 'ciphertext' | 'signature'>,
): Promise<{ readonly sequence: bigint; readonly ciphertext: Uint8Array; readonly signature: Uint8Array } | undefined> {
  const [row] = await db.query<{ sequence: bigint; ciphertext: Buffer; signature: Buffer }>(findByCounter, [
    message.conversationId,
    message.sessionId,
    message.sender.userId,
    message.sender.deviceId,
    message.senderCounter,
  ]);
  return row;
}

/** How long a session is used before its rotation is due; 0 for ever. */
export interface SessionBounds {
  readonly messages: number;
  readonly ageMs: number;
}

/** Appends to the log, and makes a rotation due where the epoch has reached its bounds. The conversation's row is locked until the end of the transaction. */
export async function appendMessage(
  tx: Transaction,
  message: NewMessage,
  bounds: SessionBounds,
  writerBuild: string,
): Promise<{ readonly sequence: bigint; readonly rotationDue: RotationDueReason }> {
  const [row] = await tx.query<{ sequence: bigint; rotation_due: RotationDueReason }>(append, [
    message.conversationId,
    message.epoch,
    message.sessionId,
    message.sender.userId,
    message.sender.deviceId,
    message.senderCounter,
    message.ciphertext,
    message.signature,
    writerBuild,
    bounds.messages,
    bounds.ageMs,
  ]);
  if (!row) throw new Error(`conversation ${message.conversationId} is gone`);
  return { sequence: row.sequence, rotationDue: row.rotation_due };
}

/** Up to `limit` messages of the readable epochs and up to `mostBytes` of ciphertext, but at least one; `more` when there are further ones. */
export async function readMessages(
  db: Queryable,
  conversationId: string,
  after: bigint,
  readable: readonly EpochRange[],
  limit: number,
  mostBytes: number,
): Promise<{ readonly messages: StoredMessage[]; readonly more: boolean }> {
  const rows = await db.query<{
    sequence: bigint;
    epoch: bigint;
    session_id: string;
    sender_user_id: string;
    sender_device_id: string;
    sender_counter: bigint;
    ciphertext: Buffer;
    signature: Buffer;
    sent_at: Date;
    erased_at: Date | null;
    found: bigint;
  }>(page, [
    conversationId,
    after,
    readable.map(({ first }) => first),
    readable.map(({ last }) => last ?? null),
    limit,
    mostBytes,
  ]);
  return {
    more: rows.some(({ found }) => found > BigInt(rows.length)),
    messages: rows.map((row) => ({
      sequence: row.sequence,
      epoch: row.epoch,
      sessionId: row.session_id,
      sender: { userId: row.sender_user_id, deviceId: row.sender_device_id },
      senderCounter: row.sender_counter,
      ciphertext: row.ciphertext,
      signature: row.signature,
      sentAt: row.sent_at,
      erasedAt: row.erased_at ?? undefined,
    })),
  };
}
