import type { AuditEntry } from '@keytrail/diagnosis/audited';
import { type Queryable, statement, type Transaction } from '@keytrail/storage';

/** What an operator did, and why. */
export interface AuditedAction {
  /** The subject of the operator's token. */
  readonly operator: string;
  /** As `revoke_device`. */
  readonly action: string;
  readonly userId?: string;
  readonly deviceId?: string;
  /** 1 to 500 characters. */
  readonly note: string;
  /** 32 hexadecimal digits, or empty. */
  readonly traceId: string;
}

const add = statement(
  'audit_log_add',
  'INSERT INTO audit_log (operator, action, user_id, device_id, note, trace_id) VALUES ($1, $2, $3, $4, $5, $6)',
);

/** Records an action in the transaction that does it. */
export function recordAudit(
  tx: Transaction,
  { operator, action, userId, deviceId, note, traceId }: AuditedAction,
): void {
  tx.send(add, [operator, action, userId, deviceId, note, traceId]);
}

/** What an operator was answered, or refused. */
export interface AuditedAnswer extends AuditEntry {
  /** As `find_devices`. */
  readonly action: string;
  readonly userId?: string | undefined;
  /** At most 500 characters; empty only of what begins with `find_` or `list_`, or was refused. */
  readonly note: string;
}

const addAnswer = statement(
  'audit_log_add_answer',
  'INSERT INTO audit_log (operator, action, user_id, note, outcome, trace_id) VALUES ($1, $2, $3, $4, $5, $6)',
);

export async function recordAnswer(db: Queryable, answer: AuditedAnswer): Promise<void> {
  const { operator, action, userId, note, outcome, traceId } = answer;
  await db.query(addAnswer, [operator, action, userId ?? null, note, outcome, traceId]);
}
