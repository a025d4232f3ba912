import { type Queryable, statement } from '@keytrail/storage';

/** What an operator looked at or did. */
export interface AuditedAction {
  /** The subject of the operator's token. */
  readonly operator: string;
  /** As `nudge_key_request`. */
  readonly action: string;
  readonly keyRequestId?: string | undefined;
  readonly conversationId?: string | undefined;
  /** Whose requests. */
  readonly userId?: string | undefined;
  readonly deviceId?: string | undefined;
  /** At most 500 characters, empty for none. */
  readonly note: string;
  /** `done`, or the reason of the refusal. */
  readonly outcome: string;
  /** 32 hexadecimal digits, or empty. */
  readonly traceId: string;
}

const add = statement(
  'session_audit_log_add',
  `INSERT INTO audit_log (operator, action, key_request_id, conversation_id, user_id, device_id, note, outcome, trace_id)
   VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)`,
);

export async function recordAudit(db: Queryable, action: AuditedAction): Promise<void> {
  await db.query(add, [
    action.operator,
    action.action,
    action.keyRequestId ?? null,
    action.conversationId ?? null,
    action.userId ?? null,
    action.deviceId ?? null,
    action.note,
    action.outcome,
    action.traceId,
  ]);
}
