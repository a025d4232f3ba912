import { timestampFromDate } from '@bufbuild/protobuf/wkt';
import { DiagnosticsService } from '@keytrail/contracts';
import { peerBuildsSeen, type Readiness, type Rpc, unary } from '@keytrail/rpc';
import type { SchemaReadiness } from '@keytrail/storage';
import { describeError } from '@keytrail/telemetry';
import { compareSchema, type DiagnosticsParts } from '../parts.ts';
import { processIdentity } from '../process-identity.ts';

/** Answers whatever state the process is in: what it cannot find out of its stores stands in `not_ready_because`. */
export function describeProcess(parts: DiagnosticsParts): Rpc {
  return unary(DiagnosticsService.method.describeProcess, {
    allow: ['operator', 'service'],
    whileClosed: true,
    async handle() {
      const [{ ready, why }, schema] = await Promise.all([readinessOf(parts), schemaOf(parts)]);
      return {
        process: processIdentity(parts.telemetry),
        ...(schema && { schema: comparison(schema) }),
        peers: peerBuildsSeen().map(({ peer, build, contract, seenAt }) => ({
          service: peer,
          writerBuild: build,
          contractDigest: contract,
          seenAt: timestampFromDate(seenAt),
        })),
        ready,
        notReadyBecause: why ?? '',
        now: timestampFromDate(new Date()),
      };
    },
  });
}

async function readinessOf({ readiness }: DiagnosticsParts): Promise<Readiness> {
  try {
    return await readiness();
  } catch (error) {
    return { ready: false, why: describeError(error).message };
  }
}

/** Undefined without a database, and while it cannot be asked. */
async function schemaOf(parts: DiagnosticsParts): Promise<SchemaReadiness | undefined> {
  return compareSchema(parts)?.catch(() => undefined);
}

function comparison({ state, floor, newestInDatabase }: SchemaReadiness) {
  return { ...state, floor: floor ?? '', newestInDatabase };
}
