import type { DeviceRef, MemberRole } from '@keytrail/contracts';
import { sha256 } from '@noble/hashes/sha2.js';
import { type Part, transcript } from './transcript.ts';

/** SHA-256 over the header exactly as serialized by the initiator: 32 bytes. */
export function headerHash(header: Uint8Array): Uint8Array {
  return sha256(header);
}

/** What is hashed for `rosterHash`. Users are put in the order of their ids' bytes; roles are numbers of MemberRole. */
export function rosterText(members: Iterable<{ userId: string; role: MemberRole }>): Uint8Array {
  const sorted = [...members].sort((a, b) => (a.userId < b.userId ? -1 : a.userId > b.userId ? 1 : 0));
  if (sorted.some(({ userId }, i) => userId === sorted[i - 1]?.userId))
    throw new RangeError('a user is in the roster twice');
  const parts: Part[] = sorted.flatMap(({ userId, role }) => [userId, role]);
  return transcript('keytrail/v1/roster', sorted.length, ...parts);
}

/**
 * SHA-256 over the members of a roster: 32 bytes. The order of the argument does not matter.
 *
 * @throws RangeError when a user is there twice.
 */
export function rosterHash(members: Iterable<{ userId: string; role: MemberRole }>): Uint8Array {
  return sha256(rosterText(members));
}

export function conversationIdText(userId: string, requestId: string): Uint8Array {
  return transcript('keytrail/v1/conversation-id', userId, requestId.toLowerCase());
}

/**
 * The id of the conversation that a user creates with a request id (a UUID): a UUID of version 8 (RFC 9562 §5.8), so that
 * a retry after any crash means the same conversation, and nobody else can take its id.
 */
export function deriveConversationId(userId: string, requestId: string): string {
  const bytes = sha256(conversationIdText(userId, requestId)).slice(0, 16);
  bytes[6] = ((bytes[6] ?? 0) & 0x0f) | 0x80;
  bytes[8] = ((bytes[8] ?? 0) & 0x3f) | 0x80;
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join('-');
}

/** The session that a key belongs to, before there is a header. */
export interface SessionName {
  readonly conversationId: string;
  readonly sessionId: string;
  readonly epoch: bigint;
}

export function keyCommitmentText(sessionKey: Uint8Array, session: SessionName): Uint8Array {
  const { conversationId, sessionId, epoch } = session;
  return transcript('keytrail/v1/key-commitment', conversationId, sessionId, epoch, sessionKey);
}

/**
 * What the header says of the session key (32 random bytes): 32 bytes. It hides the key, as finding it means guessing 256 random
 * bits, and binds it, as another key with this commitment would be a collision of SHA-256.
 */
export function keyCommitment(sessionKey: Uint8Array, session: SessionName): Uint8Array {
  return sha256(keyCommitmentText(sessionKey, session));
}

/** One device of one user, as a plain value or a message. */
export type Ref = Pick<DeviceRef, 'userId' | 'deviceId'>;

export function sameDevice(a: Ref | undefined, b: Ref | undefined): boolean {
  return a !== undefined && b !== undefined && a.userId === b.userId && a.deviceId === b.deviceId;
}
