import { statement, type Transaction } from '@keytrail/storage';

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
