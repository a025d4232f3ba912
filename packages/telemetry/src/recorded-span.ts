import type {
  Attributes,
  AttributeValue,
  Exception,
  HrTime,
  Link,
  Span,
  SpanContext,
  SpanKind,
  SpanStatus,
  TimeInput,
} from '@opentelemetry/api';
import { SpanStatusCode } from '@opentelemetry/api';
import { eventAttr } from './attributes.ts';
import { epochMs } from './clock.ts';
import type { LocalPart, LocalParts } from './local-parts.ts';
import { describeError } from './redaction.ts';

export interface RecordedEvent {
  readonly name: string;
  readonly atMs: number;
  readonly attributes: Attributes;
}

const none: readonly never[] = [];
const unset: SpanStatus = { code: SpanStatusCode.UNSET };
const maxEvents = 64;

/**
 * A span in memory. Most are dropped unseen, so recording does as little as it can: attributes given at the start are not
 * copied until they change, times are one number each, and the form that exporters want is made only for exported spans.
 *
 * It is its own SpanContext, because the sampled flag must be true from the moment on at which the part is kept.
 */
export class RecordedSpan implements Span, SpanContext {
  name: string;
  readonly traceId: string;
  readonly spanId: string;
  readonly kind: SpanKind;
  readonly part: LocalPart;
  readonly parent: SpanContext | undefined;
  /** ms since 1970. */
  readonly startMs: number;
  endMs = 0;
  status = unset;
  events: readonly RecordedEvent[] = none;
  links: readonly Link[];
  attributes: Attributes;
  #attributesAreOwn = false;
  readonly #parts: LocalParts;

  constructor(
    parts: LocalParts,
    part: LocalPart,
    parent: SpanContext | undefined,
    name: string,
    kind: SpanKind,
    traceId: string,
    spanId: string,
    startMs: number,
    attributes: Attributes | undefined,
    links: readonly Link[] | undefined,
  ) {
    this.#parts = parts;
    this.part = part;
    this.parent = parent;
    this.name = name;
    this.kind = kind;
    this.traceId = traceId;
    this.spanId = spanId;
    this.startMs = startMs;
    this.attributes = attributes ?? {};
    this.links = links ?? none;
  }

  get traceFlags(): number {
    return this.part.exported ? 1 : 0;
  }

  spanContext(): SpanContext {
    return this;
  }

  isRecording(): boolean {
    return this.endMs === 0;
  }

  setAttribute(key: string, value: AttributeValue | undefined): this {
    if (this.endMs !== 0) return this;
    if (!this.#attributesAreOwn) {
      this.attributes = { ...this.attributes };
      this.#attributesAreOwn = true;
    }
    this.attributes[key] = value;
    return this;
  }

  setAttributes(attributes: Attributes): this {
    for (const key of Object.keys(attributes)) this.setAttribute(key, attributes[key]);
    return this;
  }

  addEvent(name: string, attributesOrTime?: Attributes | TimeInput, time?: TimeInput): this {
    if (this.endMs !== 0 || this.events.length >= maxEvents) return this;
    const isTime = typeof attributesOrTime !== 'object' || isTimeInput(attributesOrTime);
    const at = isTime ? (attributesOrTime as TimeInput | undefined) : time;
    const event = {
      name,
      atMs: at === undefined ? this.part.clock.now() : epochMs(at),
      attributes: isTime ? {} : (attributesOrTime as Attributes),
    };
    this.events = [...this.events, event];
    return this;
  }

  recordException(exception: Exception, time?: TimeInput): void {
    const given = presentable(exception);
    const attributes: Attributes = {};
    if (given.name !== undefined) attributes[eventAttr.type] = given.name;
    if (given.message !== undefined) attributes[eventAttr.message] = given.message;
    if (given.stack !== undefined) attributes[eventAttr.stack] = given.stack;
    this.addEvent('exception', attributes, time);
  }

  addLink(link: Link): this {
    if (this.endMs === 0) this.links = [...this.links, link];
    return this;
  }

  addLinks(links: Link[]): this {
    if (this.endMs === 0) this.links = [...this.links, ...links];
    return this;
  }

  setStatus(status: SpanStatus): this {
    if (this.endMs === 0 && status.code !== SpanStatusCode.UNSET && this.status.code !== SpanStatusCode.OK)
      this.status = status;
    return this;
  }

  updateName(name: string): this {
    if (this.endMs === 0) this.name = name;
    return this;
  }

  end(time?: TimeInput): void {
    if (this.endMs !== 0) return;
    const endMs = time === undefined ? this.part.clock.now() : epochMs(time);
    this.endMs = Math.max(endMs, this.startMs);
    this.#parts.ended(this);
  }
}

// Whoever records an error without recordError tells no more of it.
function presentable(exception: Exception): Exclude<Exception, string> {
  if (typeof exception === 'string') return { message: exception };
  if (!(exception instanceof Error)) return exception;
  const { type, message, stack } = describeError(exception);
  return { name: type, message, ...(stack && { stack }) };
}

function isTimeInput(value: Attributes | Date | HrTime): value is Date | HrTime {
  return value instanceof Date || Array.isArray(value);
}
