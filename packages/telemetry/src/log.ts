import { isSpanContextValid, trace } from '@opentelemetry/api';
import type { Bindings, DestinationStream, LogFn, Logger } from 'pino';
import { pino } from 'pino';
import type { BuildIdentity } from './build.ts';
import { describeError, redactFields, redactText } from './redaction.ts';
import type { TelemetryConfig } from './settings.ts';

/** JSON lines, each with the trace it belongs to, and without credentials, keys, or ids of users and devices. */
export function createLog(
  config: Pick<TelemetryConfig, 'logLevel'>,
  build: BuildIdentity,
  instance: string,
  destination?: DestinationStream,
): Logger {
  const options = {
    level: config.logLevel,
    base: { service: build.service, instance, build: build.writerBuild, pid: build.pid, host: build.host },
    messageKey: 'message',
    errorKey: 'error',
    timestamp: () => `,"time":"${new Date().toISOString()}"`,
    formatters: {
      level: (label: string) => ({ level: label }),
      bindings: redactFields,
      log: redactFields,
    },
    serializers: { err: (value: unknown) => value, error: (value: unknown) => value },
    hooks: {
      logMethod(this: Logger, args: Parameters<LogFn>, write: LogFn) {
        write.apply(this, redactArguments(args));
      },
    },
    mixin: activeTrace,
  };
  const log = destination === undefined ? pino(options) : pino(options, destination);
  return redactChildren(log);
}

// pino takes the message from an error that comes without one, before any formatter sees it.
function redactArguments(args: unknown[]): Parameters<LogFn> {
  const [first, ...rest] = args;
  const error = first instanceof Error ? first : (first as { error?: unknown } | null | undefined)?.error;
  const fields = first instanceof Error ? { error: first } : first;
  if (error instanceof Error && rest.length === 0) rest.push(error);
  return [fields, ...rest].map(redactArgument) as Parameters<LogFn>;
}

function redactArgument(arg: unknown): unknown {
  if (arg instanceof Error) return describeError(arg).message;
  return typeof arg === 'string' ? redactText(arg) : arg;
}

// pino applies `formatters.bindings` to the first logger only; children inherit this method.
function redactChildren(log: Logger): Logger {
  const child = log.child;
  log.child = function redactedChild(this: Logger, bindings: Bindings, ...options: never[]) {
    return child.call(this, redactFields(bindings), ...options);
  } as Logger['child'];
  return log;
}

function activeTrace(): { trace_id?: string; span_id?: string } {
  const active = trace.getActiveSpan()?.spanContext();
  return active !== undefined && isSpanContextValid(active) ? { trace_id: active.traceId, span_id: active.spanId } : {};
}
