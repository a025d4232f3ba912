import { ConnectError } from '@connectrpc/connect';
import { type Call, readRefusal, refuse } from '@keytrail/rpc';
import type { Database, Queryable } from '@keytrail/storage';
import { keepTrace } from '@keytrail/telemetry';
import { type AuditedAction, recordAudit } from '../../store/audit-log.ts';

type About = Omit<AuditedAction, 'operator' | 'outcome' | 'traceId'>;

/** Writes that it was done; whatever became known meanwhile comes with it. Before the answer goes out, and in the transaction of a change. */
export type RecordDone = (on: Queryable, more?: Partial<About>) => Promise<void>;

/** Answers an operator, with a row of the audit log in any case: `work` records what was done, a refusal is recorded here. */
export async function audited<T>(
  db: Database,
  call: Call,
  about: About,
  work: (recordDone: RecordDone) => Promise<T>,
): Promise<T> {
  const { caller, traceId } = call;
  if (caller.kind !== 'operator')
    throw refuse('CALLER_NOT_ALLOWED', 'this method is for operators', {
      metadata: { method: call.method, caller: caller.kind },
    });
  keepTrace('operator');
  const entry = { ...about, operator: caller.subject, traceId };
  try {
    return await work((on, more) => recordAudit(on, { ...entry, ...more, outcome: 'done' }));
  } catch (error) {
    const reason = error instanceof ConnectError ? readRefusal(error).reason : '';
    await recordAudit(db, { ...entry, outcome: reason || 'INTERNAL' });
    throw error;
  }
}
