import { DiagnosticsService } from '@keytrail/contracts';
import { replayDeadLetter as replay } from '@keytrail/events';
import { type Rpc, refuse, unary } from '@keytrail/rpc';
import { audited } from '../audited.ts';
import type { DiagnosticsParts } from '../parts.ts';

/** Has its consumer handle a dead letter once more. One that throws again keeps the letter, and what it threw is told. */
export function replayDeadLetter({ database, audit, bus }: DiagnosticsParts): Rpc {
  const noSuchLetter = () => refuse('NOT_FOUND_OR_NOT_PERMITTED', 'there is no such dead letter');
  return unary(DiagnosticsService.method.replayDeadLetter, {
    allow: ['operator'],
    async handle({ deadLetterId }, call) {
      if (!database) throw noSuchLetter();
      const { db } = database;
      const record = audit ?? (async () => {});
      const about = { action: 'replay_dead_letter', note: `dead letter ${deadLetterId}` };
      return audited(call, { db, record, about }, async (recordDone) => {
        const replayed = await replay(db, bus, deadLetterId, (tx, { consumer, subject, eventId }) =>
          recordDone(tx, { note: `${about.note}: ${consumer}, ${subject}, ${eventId}`.slice(0, 500) }),
        );
        if (replayed.outcome === 'unknown') throw noSuchLetter();
        if (replayed.outcome === 'handled') return { handled: true };
        const { problem } = replayed;
        await recordDone(db, { note: `${about.note} could not be handled: ${problem}`.slice(0, 500) });
        return { handled: false, problem };
      });
    },
  });
}
