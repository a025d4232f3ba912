import { create } from '@bufbuild/protobuf';
import { timestampDate, timestampFromDate } from '@bufbuild/protobuf/wkt';
import { type RosterEntry, RosterEntrySchema } from '@keytrail/contracts';
import { suite } from '@keytrail/crypto';
import { type Queryable, statement, type Transaction } from '@keytrail/storage';
import type { VerifiedChange } from '../rosters/verify-change.ts';
import type { Writer } from './conversations.ts';

const addChange = statement(
  'roster_log_add_change',
  `INSERT INTO roster_log (conversation_id, roster_version, previous_version, previous_hash, change, signature,
     author_user_id, author_device_id, author_identity_key, author_signing_key,
     certificate_root_key, certified_at, certificate_signature, writer_build, trace_id)
   VALUES ($1, $2, nullif($2::bigint - 1, 0), $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)`,
);

const addErasure = statement(
  'roster_log_add_erasure',
  `INSERT INTO roster_log (conversation_id, roster_version, previous_version, previous_hash, erased_user_id, writer_build, trace_id)
   VALUES ($1, $2, $2::bigint - 1, $3, $4, $5, $6)`,
);

// As for messages: a page ends before the row that would make it too large or too long, but has at least one.
const page = statement(
  'roster_log_page',
  `SELECT * FROM (
     SELECT candidate.*, count(*) OVER () AS found, row_number() OVER (ORDER BY roster_version) AS place,
       sum(octet_length(coalesce(change, base, ''))) OVER (ORDER BY roster_version) AS bytes
     FROM (
       SELECT * FROM roster_log WHERE conversation_id = $1 AND roster_version > $2 AND roster_version <= $3
       ORDER BY roster_version LIMIT $4::int + 1
     ) AS candidate
   ) AS measured
   WHERE place = 1 OR (place <= $4 AND bytes <= $5)
   ORDER BY roster_version`,
);

/** How far the roster's log is a user's to read: all of it for a member, up to the end of the last membership for who left. */
const readableTo = statement(
  'roster_log_readable_to',
  `SELECT c.roster_version, bool_or(m.to_epoch IS NULL) AS member, max(m.to_roster_version) AS left_in
   FROM conversations c JOIN memberships m USING (conversation_id)
   WHERE c.conversation_id = $1 AND m.user_id = $2 GROUP BY 1`,
);

/** Where a new entry stands: the version that the roster has since a moment ago, and the head before. */
export interface RosterEntryPlace {
  readonly conversationId: string;
  readonly rosterVersion: bigint;
  /** 32 bytes; empty for version 1. */
  readonly previousHash: Uint8Array;
}

/** The newest version of a roster must be the entry's already; its head follows. */
export async function addRosterChange(
  tx: Transaction,
  { conversationId, rosterVersion, previousHash }: RosterEntryPlace,
  { signed, change }: VerifiedChange,
  by: Writer,
): Promise<void> {
  const { authorCertificate } = signed;
  if (!authorCertificate?.certifiedAt) throw new Error('a verified change has a certificate');
  await tx.query(addChange, [
    conversationId,
    rosterVersion,
    previousHash,
    signed.change,
    signed.signature,
    change.author.userId,
    change.author.deviceId,
    signed.authorIdentityKey,
    signed.authorSigningKey,
    authorCertificate.rootKey,
    timestampDate(authorCertificate.certifiedAt),
    authorCertificate.signature,
    by.build,
    by.traceId,
  ]);
}

export async function addRosterErasure(
  tx: Transaction,
  { conversationId, rosterVersion, previousHash }: RosterEntryPlace,
  userId: string,
  by: Writer,
): Promise<void> {
  await tx.query(addErasure, [conversationId, rosterVersion, previousHash, userId, by.build, by.traceId]);
}

/** The last version of a roster that a user may read of; undefined for those who never were members. */
export async function lastReadableRoster(
  db: Queryable,
  conversationId: string,
  userId: string,
): Promise<bigint | undefined> {
  const [row] = await db.query<{ roster_version: bigint; member: boolean; left_in: bigint | null }>(readableTo, [
    conversationId,
    userId,
  ]);
  return row && (row.member || row.left_in === null ? row.roster_version : row.left_in);
}

/** Up to `limit` entries after one and up to another version, and up to `mostBytes` of changes, but at least one. */
export async function readRosterEntries(
  db: Queryable,
  conversationId: string,
  between: { readonly after: bigint; readonly upTo: bigint },
  limit: number,
  mostBytes: number,
): Promise<{ readonly entries: RosterEntry[]; readonly more: boolean }> {
  const rows = await db.query<{
    roster_version: bigint;
    change: Buffer | null;
    signature: Buffer;
    author_identity_key: Buffer;
    author_signing_key: Buffer;
    certificate_root_key: Buffer;
    certified_at: Date;
    certificate_signature: Buffer;
    erased_user_id: string | null;
    base: Buffer | null;
    entry_hash: Buffer;
    recorded_at: Date;
    found: bigint;
  }>(page, [conversationId, between.after, between.upTo, limit, mostBytes]);
  return {
    more: rows.some(({ found }) => found > BigInt(rows.length)),
    entries: rows.map((row) =>
      create(RosterEntrySchema, {
        rosterVersion: row.roster_version,
        ...(row.change && {
          signedChange: {
            change: row.change,
            signature: row.signature,
            authorIdentityKey: row.author_identity_key,
            authorSigningKey: row.author_signing_key,
            authorCertificate: {
              rootKey: row.certificate_root_key,
              suite,
              certifiedAt: timestampFromDate(row.certified_at),
              signature: row.certificate_signature,
            },
          },
        }),
        erasedUserId: row.erased_user_id ?? '',
        base: row.base ?? new Uint8Array(),
        hash: row.entry_hash,
        recordedAt: timestampFromDate(row.recorded_at),
      }),
    ),
  };
}
