import type { AttributeValue } from '@opentelemetry/api';

/** The attributes that the SDK writes on spans. It knows OpenTelemetry's API alone; each is declared in the registry of the project too. */
export const spanAttributeNames = [
  'error.type',
  'keytrail.conversation.id',
  'keytrail.key_request.id',
  'keytrail.long_lived',
  'keytrail.miss',
  'keytrail.miss.cause',
  'keytrail.notification.kind',
  'keytrail.reason',
  'keytrail.recovery',
  'keytrail.session.id',
  'messaging.operation.name',
  'messaging.operation.type',
  'messaging.system.name',
  'rpc.method',
  'rpc.status_code',
  'rpc.system.name',
  'server.address',
  'server.port',
] as const;

type SpanAttributeName = (typeof spanAttributeNames)[number];

/** What a span of the SDK may say; a literal with more is refused by its type. */
export type SpanAttributes = { readonly [Name in SpanAttributeName]?: AttributeValue };

/** The part of OpenTelemetry's span that operations write to. */
export interface OperationSpan {
  setAttribute(name: SpanAttributeName, value: AttributeValue): unknown;
  setAttributes(attributes: SpanAttributes): unknown;
}
