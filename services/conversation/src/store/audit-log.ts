import type { AuditEntry } from '@keytrail/diagnosis/audited';
import { type Queryable, statement } from '@keytrail/storage';

/** What an operator looked at or did. */
export interface AuditedAction extends AuditEntry {
  /** As `describe_conversation`. */
  readonly action: string;
  readonly conversationId?: string | undefined;
  readonly userId?: string | undefined;
  /** At most 500 characters, empty for none. */
  readonly note: string;
}

const add = statement(
  'conversation_audit_log_add',
  `INSERT INTO audit_log (operator, action, conversation_id, user_id, note, outcome, trace_id)
   VALUES ($1, $2, $3, $4, $5, $6, $7)`,
);

export async function recordAudit(db: Queryable, action: AuditedAction): Promise<void> {
  await db.query(add, [
    action.operator,
    action.action,
    action.conversationId ?? null,
    action.userId ?? null,
    action.note,
    action.outcome,
    action.traceId,
  ]);
}
