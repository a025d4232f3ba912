import { currentTraceId } from '@keytrail/telemetry';
import type { Parts } from './parts.ts';
import type { Writer } from './store/conversations.ts';

/** Who writes now: this build, within this trace. */
export function writerOf(parts: Pick<Parts, 'writerBuild'>): Writer {
  return { build: parts.writerBuild, traceId: currentTraceId() };
}
