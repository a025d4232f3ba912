/** One span as it is stored and shown; times in ms with fractions, since 1970. */
export interface TraceSpan {
  readonly traceId: string;
  readonly spanId: string;
  /** '' for a root. */
  readonly parentSpanId: string;
  readonly name: string;
  readonly kind: SpanKindName;
  readonly service: string;
  /** `service.instance.id` of the process. */
  readonly instance: string;
  /** `keytrail.build` of the process, '' where it says none. */
  readonly build: string;
  readonly startMs: number;
  readonly durationMs: number;
  readonly status: 'unset' | 'ok' | 'error';
  readonly statusMessage: string;
  readonly attributes: TraceAttributes;
  readonly events: readonly { readonly name: string; readonly atMs: number; readonly attributes: TraceAttributes }[];
  readonly links: readonly TraceLink[];
}

export type SpanKindName = 'internal' | 'server' | 'client' | 'producer' | 'consumer';
export type TraceAttributes = Readonly<Record<string, unknown>>;

export interface TraceLink {
  readonly traceId: string;
  readonly spanId: string;
  readonly attributes: TraceAttributes;
}
