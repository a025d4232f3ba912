import { currentTraceId } from '@keytrail/telemetry';
import type { Writer } from './store/revocations.ts';

/** Who writes now: this build, within this trace. */
export function writerOf(parts: { readonly writerBuild: string }): Writer {
  return { build: parts.writerBuild, traceId: currentTraceId() };
}
