import { timestampFromDate } from '@bufbuild/protobuf/wkt';
import { DiagnosticsService } from '@keytrail/contracts';
import { type Rpc, unary } from '@keytrail/rpc';
import type { DiagnosticsParts } from '../parts.ts';
import { processIdentity } from '../process-identity.ts';

export function describeProcess({ telemetry, readiness }: DiagnosticsParts): Rpc {
  return unary(DiagnosticsService.method.describeProcess, {
    allow: ['operator', 'service'],
    async handle() {
      const { ready, why } = await readiness();
      return {
        process: processIdentity(telemetry.build),
        ready,
        notReadyBecause: why ?? '',
        now: timestampFromDate(new Date()),
      };
    },
  });
}
