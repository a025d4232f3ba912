export type { Attributes, Context, Counter, Histogram, Meter } from '@opentelemetry/api';
export { context, ROOT_CONTEXT, SpanKind, SpanStatusCode } from '@opentelemetry/api';
export type { DestinationStream, Logger } from 'pino';
export type { AttributeName } from './attributes.ts';
export { attr, attributeReference, eventAttr, eventReference, resourceAttr, resourceReference } from './attributes.ts';
export type { BuildIdentity } from './build.ts';
export { buildIdentity, digestSources, readRevision, sourcesOnDisk } from './build.ts';
export { DatabaseAway, DatabaseUnfit, databaseErrorText, isDatabaseAway } from './database-error.ts';
export {
  type AttributesOf,
  type CounterName,
  count,
  type GaugeName,
  type HistogramName,
  measure,
  type Observe,
  report,
} from './instruments.ts';
export {
  type InstrumentDeclaration,
  metricAttr,
  metricRegistry,
  prometheusLabel,
  prometheusName,
  prometheusSeries,
} from './metric-registry.ts';
export { meter } from './metrics.ts';
export { pseudonym } from './pseudonym.ts';
export { describeError, redactText } from './redaction.ts';
export { withRedisSpan } from './redis-span.ts';
export type { TelemetryConfig } from './settings.ts';
export { telemetrySettings } from './settings.ts';
export type { SpanSettings } from './spans.ts';
export {
  contextFromTraceparent,
  currentTraceId,
  currentTraceparent,
  followSampling,
  forgetBeginning,
  isSampled,
  keepTrace,
  linkFromTraceparent,
  linkToTrace,
  markMiss,
  recordError,
  traceparentOf,
  tracer,
  withSpan,
} from './spans.ts';
export { type Supervisor, supervisors } from './supervisor.ts';
export type { Telemetry, TelemetryArrivals, TelemetryOptions } from './telemetry.ts';
export { startTelemetry } from './telemetry.ts';
export { type Link, type Span, type SpanAttributes, type SpanStart, type Tracer, trace } from './typed-spans.ts';
