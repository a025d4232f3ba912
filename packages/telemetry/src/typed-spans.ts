import type {
  AttributeValue,
  Context,
  Exception,
  SpanContext,
  SpanKind,
  SpanStatus,
  TimeInput,
} from '@opentelemetry/api';
import * as api from '@opentelemetry/api';
import type { AttributeName } from './attributes.ts';

/** What a span or a link may say: the names of the registry, and none besides. */
export type SpanAttributes = { readonly [Name in AttributeName]?: AttributeValue | undefined };

/** Takes the place of an attribute that is not declared, so that variables with more than the registry are refused too, not only literals. */
export type Declared<Given> = { readonly [Name in keyof Given]: Name extends AttributeName ? Given[Name] : never };

export interface Link {
  readonly context: SpanContext;
  readonly attributes?: SpanAttributes;
}

/** OpenTelemetry's span as this project writes it: every attribute is declared, and the one event is an exception. */
export interface Span {
  spanContext(): SpanContext;
  isRecording(): boolean;
  setAttribute(name: AttributeName, value: AttributeValue): this;
  setAttributes<Given extends SpanAttributes>(attributes: Given & Declared<Given>): this;
  addLink(link: Link): this;
  recordException(exception: Exception, time?: TimeInput): void;
  setStatus(status: SpanStatus): this;
  end(endTime?: TimeInput): void;
}

export interface SpanStart<Given extends SpanAttributes = SpanAttributes> {
  readonly kind?: SpanKind;
  /** Not copied: a constant may be shared, a variable must not be changed afterwards. */
  readonly attributes?: Given & Declared<Given>;
  readonly links?: Link[];
  readonly root?: boolean;
  readonly startTime?: TimeInput;
}

export interface Tracer {
  startSpan<Given extends SpanAttributes>(name: string, settings?: SpanStart<Given>, parent?: Context): Span;
}

/** OpenTelemetry's `trace`, with the spans typed. */
export const trace: {
  getActiveSpan(): Span | undefined;
  getSpan(of: Context): Span | undefined;
  setSpan(of: Context, span: Span): Context;
} = api.trace;
