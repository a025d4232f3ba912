import type { RotationDueReason } from '@keytrail/contracts';

/** A conversation where a rotation became due, and who is in it. */
export interface MarkedConversation {
  readonly conversationId: string;
  readonly epoch: bigint;
  readonly sessionId: string;
  readonly rosterVersion: bigint;
  readonly rotationDue: RotationDueReason;
  readonly memberIds: readonly string[];
}

export interface MarkedRow {
  conversation_id: string;
  epoch: bigint;
  session_id: string;
  roster_version: bigint;
  rotation_due: RotationDueReason;
  member_ids: string[];
}

export function markedOf(row: MarkedRow): MarkedConversation {
  return {
    conversationId: row.conversation_id,
    epoch: row.epoch,
    sessionId: row.session_id,
    rosterVersion: row.roster_version,
    rotationDue: row.rotation_due,
    memberIds: row.member_ids,
  };
}
