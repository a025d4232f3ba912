import { type Call, readRefusal, refuse } from '@keytrail/rpc';
import type { Queryable } from '@keytrail/storage';
import { keepTrace } from '@keytrail/telemetry';

/** What every audit log has of an action, besides what it is about. */
export interface AuditEntry {
  /** The subject of the operator's token. */
  readonly operator: string;
  /** `done`, or the reason of the refusal. */
  readonly outcome: string;
  /** 32 hexadecimal digits, or empty. */
  readonly traceId: string;
}

/** Writes a row of a service's audit log. */
export type RecordAudit<About> = (on: Queryable, action: About & AuditEntry) => Promise<void>;

/** Writes that it was done; whatever became known meanwhile comes with it. Before the answer goes out, and in the transaction of a change. */
export type RecordDone<About> = (on: Queryable, more?: Partial<About>) => Promise<void>;

/** Where and how a call is written down, and what it is about. */
export interface Audit<About> {
  /** Refusals are written here. */
  readonly db: Queryable;
  readonly record: RecordAudit<About>;
  readonly about: About;
}

/**
 * Answers an operator, with a row of the audit log in any case: `work` records what was done, a refusal is recorded here. The trace is kept. A
 * service that may call, too, asks for an operator whose call it has written down itself: nothing is written twice.
 */
export async function audited<About, T>(
  call: Call,
  { db, record, about }: Audit<About>,
  work: (recordDone: RecordDone<About>) => Promise<T>,
): Promise<T> {
  const { caller, traceId } = call;
  keepTrace('operator');
  if (caller.kind === 'service') return work(async () => {});
  if (caller.kind !== 'operator')
    throw refuse('CALLER_NOT_ALLOWED', 'this method is for operators', {
      metadata: { method: call.method, caller: caller.kind },
    });
  const entry = { ...about, operator: caller.subject, traceId };
  try {
    return await work((on, more) => record(on, { ...entry, ...more, outcome: 'done' }));
  } catch (error) {
    await record(db, { ...entry, outcome: readRefusal(error).reason || 'INTERNAL' });
    throw error;
  }
}
