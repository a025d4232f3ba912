import { DiagnosticsService } from '@keytrail/contracts';
import { type Rpc, unary } from '@keytrail/rpc';
import { acceptRestores as noteAccepted } from '@keytrail/storage';
import { audited } from '../audited.ts';
import type { DiagnosticsParts } from '../parts.ts';

/** Idempotent by nature: what was accepted stays so, by whom it was first. */
export function acceptRestores({ database, audit, telemetry }: DiagnosticsParts): Rpc {
  return unary(DiagnosticsService.method.acceptRestores, {
    allow: ['operator'],
    async handle({ auditNote: note }, call) {
      const { caller } = call;
      if (!database || caller.kind !== 'operator') return { accepted: 0 };
      const { db } = database;
      const record = audit ?? (async () => {});
      return audited(call, { db, record, about: { action: 'accept_restores', note } }, async (recordDone) => {
        const accepted = await db.transaction(async (tx) => {
          const noted = await noteAccepted(tx, { operator: caller.subject, note });
          await recordDone(tx);
          return noted;
        });
        if (accepted > 0) telemetry.log.warn({ accepted }, 'an operator accepted that the database went back in time');
        return { accepted };
      });
    },
  });
}
