import { DiagnosticsService } from '@keytrail/contracts';
import { type Rpc, unary } from '@keytrail/rpc';
import { acceptRestores as noteAccepted } from '@keytrail/storage';
import type { DiagnosticsParts } from '../parts.ts';

/** Idempotent by nature: what was accepted stays so, by whom it was first. */
export function acceptRestores({ database, telemetry }: DiagnosticsParts): Rpc {
  return unary(DiagnosticsService.method.acceptRestores, {
    allow: ['operator'],
    async handle({ auditNote }, { caller }) {
      if (!database || caller.kind !== 'operator') return { accepted: 0 };
      const accepted = await noteAccepted(database.db, { operator: caller.subject, note: auditNote });
      if (accepted > 0) telemetry.log.warn({ accepted }, 'an operator accepted that the database went back in time');
      return { accepted };
    },
  });
}
