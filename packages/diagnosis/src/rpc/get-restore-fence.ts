import { timestampFromDate } from '@bufbuild/protobuf/wkt';
import { DiagnosticsService } from '@keytrail/contracts';
import { type Rpc, unary } from '@keytrail/rpc';
import { type DatabaseRestoreRow, listRestores, readFence } from '@keytrail/storage';
import type { DiagnosticsParts } from '../parts.ts';

/** Looks now, so that the answer is not of the last round. Throws DatabaseAway. */
export function getRestoreFence({ database }: DiagnosticsParts): Rpc {
  return unary(DiagnosticsService.method.getRestoreFence, {
    allow: ['operator', 'service'],
    async handle() {
      if (!database?.fence) return { state: 'this service has no database' };
      const { db, fence } = database;
      await fence.look();
      const [{ incarnation, position, here }, restores] = await Promise.all([readFence(db), listRestores(db)]);
      return {
        open: fence.pass !== undefined,
        state: fence.state,
        outsideKnown: fence.outsideKnown,
        incarnation,
        position,
        place: here,
        restores: restores.map(restoreMessage),
      };
    },
  });
}

function restoreMessage(row: DatabaseRestoreRow) {
  return {
    endedIncarnation: row.ended_incarnation,
    because: row.because,
    noticedAt: timestampFromDate(row.noticed_at),
    ...(row.handled_at && { handledAt: timestampFromDate(row.handled_at) }),
    ...(row.accepted_at && { acceptedAt: timestampFromDate(row.accepted_at) }),
    acceptedBy: row.accepted_by ?? '',
    positionFound: row.position_found,
    positionExpected: row.position_expected,
  };
}
