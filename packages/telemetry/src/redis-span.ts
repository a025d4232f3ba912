import { SpanKind } from '@opentelemetry/api';
import { attr } from './attributes.ts';
import { withSpan } from './spans.ts';
import { trace } from './typed-spans.ts';

/** Runs a command of Redis in a span of its own, when it belongs to a trace: what nobody asked for, such as renewals, is none by itself. */
export async function withRedisSpan<T>(operation: string, run: () => Promise<T>): Promise<T> {
  if (!trace.getActiveSpan()) return run();
  return withSpan(
    operation,
    { kind: SpanKind.CLIENT, attributes: { [attr.dbSystem]: 'redis', [attr.dbOperation]: operation } },
    run,
  );
}
