import { Code, ConnectError, createContextKey, type Interceptor, type StreamResponse } from '@connectrpc/connect';
import { readRefusal } from '@keytrail/rpc/refusal';
import { type Span as ApiSpan, type Context, context, SpanKind, SpanStatusCode, trace } from '@opentelemetry/api';
import type { OperationSpan, SpanAttributes } from './span-attributes.ts';
import { traceparentOfContext } from './tracing.ts';

/** The context of the operation that makes a call: in a browser nothing else brings it to the transport. */
export const callingContext = createContextKey<Context | undefined>(undefined, { description: 'calling operation' });

/** Gives each call of the web wire a client span, as the gRPC transport does; without an SDK of OpenTelemetry it changes nothing. */
export const traceCalls: Interceptor = (next) => async (request) => {
  const parent = request.contextValues.get(callingContext) ?? context.active();
  const name = `${request.service.typeName}/${request.method.name}`;
  const { hostname, port, protocol } = new URL(request.url);
  const attributes: SpanAttributes = {
    'rpc.system.name': 'connectrpc',
    'rpc.method': name,
    'server.address': hostname,
    'server.port': Number(port || (protocol === 'https:' ? 443 : 80)),
    ...(request.stream && { 'keytrail.long_lived': true }),
  };
  const span = trace.getTracer('keytrail').startSpan(name, { kind: SpanKind.CLIENT, attributes }, parent);
  const traceparent = traceparentOfContext(trace.setSpan(parent, span));
  if (traceparent !== undefined) request.header.set('traceparent', traceparent);
  try {
    const response = await next(request);
    if (response.stream) return { ...response, message: untilEnd(response, span) } as StreamResponse;
    succeed(span);
    return response;
  } catch (error) {
    throw fail(span, error);
  }
};

async function* untilEnd({ message }: StreamResponse, span: Span): AsyncGenerator<unknown> {
  try {
    yield* message;
  } catch (error) {
    throw fail(span, error);
  } finally {
    // Ends it too when nobody reads on.
    succeed(span);
  }
}

type Span = OperationSpan & Pick<ApiSpan, 'isRecording' | 'setStatus' | 'end'>;

function succeed(span: Span): void {
  if (!span.isRecording()) return;
  span.setAttribute('rpc.status_code', 'OK');
  span.end();
}

function fail(span: Span, thrown: unknown): unknown {
  const { code, rawMessage } = ConnectError.from(thrown);
  const { reason, miss } = readRefusal(thrown);
  const status = Code[code].replace(/(?<=[a-z])(?=[A-Z])/g, '_').toUpperCase();
  if (miss !== undefined) span.setAttributes({ 'keytrail.miss': true, 'keytrail.miss.cause': reason });
  span.setAttributes({ 'rpc.status_code': status, 'error.type': reason || status });
  if (code !== Code.NotFound) span.setStatus({ code: SpanStatusCode.ERROR, message: rawMessage });
  span.end();
  return thrown;
}
