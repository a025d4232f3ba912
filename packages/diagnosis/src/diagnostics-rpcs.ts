import type { Rpc } from '@keytrail/rpc';
import type { DiagnosticsParts } from './parts.ts';
import { acceptRestores } from './rpc/accept-restores.ts';
import { describeProcess } from './rpc/describe-process.ts';
import { getRestoreFence } from './rpc/get-restore-fence.ts';
import { listDeadLetters } from './rpc/list-dead-letters.ts';
import { replayDeadLetter } from './rpc/replay-dead-letter.ts';
import { runChecks } from './rpc/run-checks.ts';

/** The methods of DiagnosticsService, for the composition root of a service. */
export function diagnosticsRpcs(parts: DiagnosticsParts): Rpc[] {
  return [
    describeProcess(parts),
    runChecks(parts),
    listDeadLetters(parts),
    replayDeadLetter(parts),
    getRestoreFence(parts),
    acceptRestores(parts),
  ];
}
