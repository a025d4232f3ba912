import { create, fromBinary, toBinary } from '@bufbuild/protobuf';
import { timestampFromDate } from '@bufbuild/protobuf/wkt';
import {
  type DeviceRef,
  HistoryPolicy,
  type RosterChange,
  RosterChangeSchema,
  type RosterEntry,
  type SignedRosterChange,
  SignedRosterChangeSchema,
} from '@keytrail/contracts';
import { sha256 } from '@noble/hashes/sha2.js';
import { deviceCertificateStatement } from './certificate.ts';
import type { Ref } from './hashes.ts';
import { checkEd25519, checkX25519 } from './key-checks.ts';
import { type KeyPair, type Primitives, suite } from './primitives.ts';
import { CertificateError, RosterError } from './problems.ts';
import type { RosterMember, RosterPermissions } from './roster-state.ts';
import { type Statement, verifyStatement } from './statement.ts';
import { transcript } from './transcript.ts';

const none = new Uint8Array();

/** The text that the author of a roster change signs, over the change exactly as the author serialized it. */
export function rosterChangeText(change: Uint8Array): Uint8Array {
  return transcript('keytrail/v1/roster-change', suite, change);
}

/** Where an entry stands in its log. */
export interface RosterPlace {
  readonly conversationId: string;
  /** Hash of the entry before: 32 bytes; empty for the first entry. */
  readonly previousHash: Uint8Array;
}

type EntryContent = Pick<RosterEntry, 'rosterVersion' | 'signedChange' | 'erasedUserId' | 'base'>;

/** What is hashed for an entry of a roster's log. A part that the entry's kind does not have is empty. */
export function rosterEntryText({ conversationId, previousHash }: RosterPlace, entry: EntryContent): Uint8Array {
  const { rosterVersion, signedChange, erasedUserId, base } = entry;
  return transcript(
    'keytrail/v1/roster-entry',
    previousHash,
    conversationId,
    rosterVersion,
    signedChange?.change ?? none,
    signedChange?.signature ?? none,
    erasedUserId,
    base,
  );
}

/** The hash of an entry: 32 bytes. */
export function rosterEntryHash(place: RosterPlace, entry: EntryContent): Uint8Array {
  return sha256(rosterEntryText(place, entry));
}

/** A roster change with its author, which is never absent. */
export type ParsedRosterChange = RosterChange & { readonly author: DeviceRef };

/**
 * Parses a roster change. Whether it follows from a roster is what `foldRoster` tells.
 *
 * @throws RosterError (`malformed`).
 */
export function parseRosterChange(bytes: Uint8Array): ParsedRosterChange {
  let change: RosterChange;
  try {
    change = fromBinary(RosterChangeSchema, bytes);
  } catch {
    throw new RosterError('malformed', 'change');
  }
  if (change.suite !== suite) throw new RosterError('malformed', 'suite');
  const { author } = change;
  if (author === undefined || author.userId === '' || author.deviceId === '')
    throw new RosterError('malformed', 'author');
  return { ...change, author };
}

/** A device that may sign roster changes, with its certificate. */
export interface RosterAuthor extends Ref {
  readonly identityKey: Pick<KeyPair, 'publicKey'>;
  readonly signingKey: KeyPair;
  readonly certificate: NonNullable<SignedRosterChange['authorCertificate']>;
}

/** What a roster change says, without who says it. */
export interface UnsignedRosterChange {
  readonly conversationId: string;
  readonly rosterVersion: bigint;
  /** The roster's head before: 32 bytes; empty for version 1. */
  readonly previousHash: Uint8Array;
  /** In any order, as are `removed` and `roles`. */
  readonly added?: readonly RosterMember[];
  readonly removed?: readonly string[];
  readonly roles?: readonly RosterMember[];
  readonly permissions?: RosterPermissions | undefined;
  readonly historyPolicy?: HistoryPolicy;
  readonly madeAt: Date;
}

/** Serializes and signs a roster change as its author. The result's bytes are what counts from here on: never serialize it again. */
export function signRosterChange(
  primitives: Primitives,
  author: RosterAuthor,
  { conversationId, rosterVersion, previousHash, madeAt, ...change }: UnsignedRosterChange,
): SignedRosterChange {
  const { userId, deviceId } = author;
  const message = create(RosterChangeSchema, {
    suite,
    conversationId,
    rosterVersion,
    previousHash,
    added: ordered(change.added),
    removed: [...(change.removed ?? [])].sort(),
    roles: ordered(change.roles),
    ...(change.permissions && { permissions: change.permissions }),
    historyPolicy: change.historyPolicy ?? HistoryPolicy.UNSPECIFIED,
    author: { userId, deviceId },
    madeAt: timestampFromDate(madeAt),
  });
  const bytes = toBinary(RosterChangeSchema, message);
  return create(SignedRosterChangeSchema, {
    change: bytes,
    signature: primitives.ed25519.sign(author.signingKey.privateKey, rosterChangeText(bytes)),
    authorCertificate: author.certificate,
    authorIdentityKey: author.identityKey.publicKey,
    authorSigningKey: author.signingKey.publicKey,
  });
}

function ordered(members: readonly RosterMember[] = []): RosterMember[] {
  return members.map(({ userId, role }) => ({ userId, role })).sort((a, b) => (a.userId < b.userId ? -1 : 1));
}

/** The statement of a signed change under the key that comes with it. Whose key that is, its certificate says. */
export function rosterChangeStatement(signed: SignedRosterChange): Statement {
  const { change, signature, authorSigningKey } = signed;
  return { publicKey: authorSigningKey, text: rosterChangeText(change), signature };
}

/**
 * Verifies that the author signed a change and that the root key in the certificate certifies the author's keys. Whether that is the author's
 * user's root key is another question.
 *
 * @throws RosterError (`malformed`, `certificate`, `signature`).
 */
export function verifyRosterChange(primitives: Primitives, signed: SignedRosterChange): ParsedRosterChange {
  const parsed = parseRosterChange(signed.change);
  const { authorIdentityKey: identityKey, authorSigningKey: signingKey, authorCertificate } = signed;
  if (checkX25519(identityKey) !== undefined || checkEd25519(signingKey) !== undefined)
    throw new RosterError('malformed', 'author_keys');
  const { userId, deviceId } = parsed.author;
  try {
    const statement = deviceCertificateStatement({ userId, deviceId, identityKey, signingKey }, authorCertificate);
    if (!verifyStatement(primitives, statement)) throw new CertificateError('signature');
  } catch (error) {
    if (!(error instanceof CertificateError)) throw error;
    throw new RosterError('certificate', error.problem);
  }
  if (!verifyStatement(primitives, rosterChangeStatement(signed))) throw new RosterError('signature');
  return parsed;
}
