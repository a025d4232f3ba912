import { gzipSync } from 'node:zlib';
import { Code, ConnectError } from '@connectrpc/connect';
import { errorFromJson } from '@connectrpc/connect/protocol-connect';
import { Client, credentials, Metadata, type ServiceError } from '@grpc/grpc-js';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { errorOfStatus } from '../src/grpc-status.ts';
import { type Refusal, readRefusal } from '../src/refusal.ts';
import { startTestService, type TestService } from './test-service.ts';

let service: TestService;
let grpc: Client;
const listOnline = '/keytrail.presence.v1.PresenceService/ListOnline';
const attach = '/keytrail.presence.v1.PresenceService/Attach';

beforeAll(async () => {
  service = await startTestService({ config: { callerRequestsPerSecond: 0 } });
  grpc = new Client(`127.0.0.1:${service.server.grpcPort}`, credentials.createInsecure());
});
afterAll(async () => {
  grpc.close();
  await service.stop();
});

/** Sends bytes as they are, with a token. */
function sendGrpc(path: string, bytes: Uint8Array, deadline = Date.now() + 5000): Promise<Refusal> {
  const metadata = new Metadata();
  metadata.set('authorization', 'Bearer alice');
  return new Promise((resolve, reject) => {
    const answered = (error: ServiceError | null) => {
      if (error === null) reject(new Error('was answered'));
      else resolve(readRefusal(errorOfStatus(error)));
    };
    if (path === listOnline) {
      grpc.makeUnaryRequest(path, Buffer.from, (answer: Buffer) => answer, bytes, metadata, { deadline }, answered);
    } else {
      const stream = grpc.makeServerStreamRequest(path, Buffer.from, (answer: Buffer) => answer, bytes, metadata, {
        deadline,
      });
      stream
        .on('error', (error) => answered(error as ServiceError))
        .on('end', () => reject(new Error('was answered')))
        .resume();
    }
  });
}

interface WebRequest {
  readonly path?: string;
  readonly method?: string;
  readonly contentType?: string;
  readonly headers?: Record<string, string>;
  readonly body?: Uint8Array | string;
}

async function sendWeb({
  path = listOnline,
  method = 'POST',
  contentType,
  headers,
  body,
}: WebRequest): Promise<Response> {
  return await fetch(`http://127.0.0.1:${service.server.webPort}${path}`, {
    method,
    headers: {
      authorization: 'Bearer alice',
      ...(contentType === undefined ? {} : { 'content-type': contentType }),
      ...headers,
    },
    ...(body === undefined ? {} : { body: body as string }),
  });
}

async function webRefusal(response: Response): Promise<Refusal & { http: number }> {
  const json = await response.json();
  const fallback = new ConnectError('no refusal', Code.Unknown);
  return { ...readRefusal(errorFromJson(json as never, response.headers, fallback)), http: response.status };
}

const malformed: [string, Uint8Array][] = [
  ['a tag cut short', Uint8Array.of(0x8a)],
  ['a field number of 0', Uint8Array.of(0x02, 0x00)],
  ['a length beyond the end', Uint8Array.of(0x0a, 0x7f, 0x61)],
  ['a text that is not UTF-8', Uint8Array.of(0x0a, 0x02, 0xc3, 0x28)],
  ['an unknown wire type', Uint8Array.of(0x0f)],
  ['noise', Uint8Array.from({ length: 300 }, (_, i) => (i * 151 + 7) % 256)],
];

describe('bytes that are no message are INVALID_FIELD and never a fault', () => {
  test.each(malformed)('%s', async (_what, bytes) => {
    const expected = { code: Code.InvalidArgument, reason: 'INVALID_FIELD' };
    expect(await sendGrpc(listOnline, bytes)).toMatchObject(expected);
    expect(await sendGrpc(attach, bytes)).toMatchObject(expected);
    expect(await webRefusal(await sendWeb({ contentType: 'application/proto', body: bytes }))).toMatchObject({
      ...expected,
      http: 400,
    });
    const query = `?encoding=proto&base64=1&message=${Buffer.from(bytes).toString('base64url')}`;
    expect(await webRefusal(await sendWeb({ method: 'GET', path: `${listOnline}${query}` }))).toMatchObject(expected);
  });

  test.each<[string, WebRequest, Partial<Refusal>]>([
    ['JSON cut short', { contentType: 'application/json', body: '{"userIds": [' }, { metadata: { field: 'request' } }],
    ['no JSON at all', { contentType: 'application/json', body: '' }, { metadata: { field: 'request' } }],
    [
      'JSON of another shape',
      { contentType: 'application/json', body: '{"userIds": "a"}' },
      { metadata: { field: 'user_ids' } },
    ],
    ['JSON that is not UTF-8', { contentType: 'application/json', body: Uint8Array.of(0x22, 0xc3, 0x28, 0x22) }, {}],
    [
      'what is called gzip and is not',
      { contentType: 'application/json', body: '{}', headers: { 'content-encoding': 'gzip' } },
      { metadata: { field: 'content-encoding' } },
    ],
    [
      'an encoding unheard of',
      { contentType: 'application/json', body: '{}', headers: { 'content-encoding': 'zap' } },
      { metadata: { field: 'content-encoding' } },
    ],
    [
      'a timeout that is none',
      { contentType: 'application/json', body: '{"userIds":["a"]}', headers: { 'connect-timeout-ms': 'soon' } },
      { metadata: { field: 'timeout' } },
    ],
    [
      'a GET that is not JSON',
      { method: 'GET', path: `${listOnline}?message=nonsense` },
      { metadata: { field: 'request' } },
    ],
    [
      'a GET whose base64 is none',
      { method: 'GET', path: `${listOnline}?base64=1&message=!!` },
      { metadata: { field: 'message' } },
    ],
    ['a GET without a message', { method: 'GET' }, { metadata: { field: 'user_ids' } }],
  ])('%s', async (_what, request, expected) => {
    expect(await webRefusal(await sendWeb(request))).toMatchObject({
      code: Code.InvalidArgument,
      reason: 'INVALID_FIELD',
      http: 400,
      ...expected,
    });
  });

  test('a request that inflates beyond the limit is LIMIT_EXCEEDED', async () => {
    const body = gzipSync(Buffer.alloc(64 * 1024 * 1024, 32));
    const answer = await sendWeb({ contentType: 'application/json', body, headers: { 'content-encoding': 'gzip' } });
    expect(await webRefusal(answer)).toMatchObject({
      code: Code.ResourceExhausted,
      reason: 'LIMIT_EXCEEDED',
      http: 429,
    });
  });

  test.each<[string, Uint8Array]>([
    ['no envelope', new Uint8Array()],
    ['an envelope cut short', Uint8Array.of(0, 0, 0, 0, 9, 1)],
    ['two envelopes', Uint8Array.of(0, 0, 0, 0, 0, 0, 0, 0, 0, 0)],
    ['a compressed envelope of an unnamed encoding', Uint8Array.of(1, 0, 0, 0, 1, 1)],
  ])('of a stream: %s', async (_what, body) => {
    const answer = await sendWeb({ path: attach, contentType: 'application/connect+proto', body });
    expect(answer.status).toBe(200);
    const bytes = new Uint8Array(await answer.arrayBuffer());
    expect(bytes[0]).toBe(2);
    const end = JSON.parse(new TextDecoder().decode(bytes.subarray(5))) as { error: never };
    const refusal = readRefusal(errorFromJson(end.error, undefined, new ConnectError('no refusal', Code.Unknown)));
    expect(refusal).toMatchObject({ code: Code.InvalidArgument, reason: 'INVALID_FIELD' });
  });

  test('and the process lives', async () => {
    const answer = await sendWeb({ contentType: 'application/json', body: '{"userIds":["a"], "unheardOf": 1}' });
    expect(await answer.json()).toEqual({ devices: [{ device: { userId: 'a', deviceId: 'phone' } }] });
  });
});

describe('the web port', () => {
  test('answers a safe read by a plain GET', async () => {
    const message = encodeURIComponent('{"userIds":["a"]}');
    const answer = await sendWeb({ method: 'GET', path: `${listOnline}?message=${message}` });
    expect(answer.status).toBe(200);
    expect(answer.headers.get('cache-control')).toBe('no-store');
    expect(await answer.json()).toEqual({ devices: [{ device: { userId: 'a', deviceId: 'phone' } }] });
  });

  test('has no GET for methods with effects, and no other methods', async () => {
    const heartbeat = await sendWeb({ method: 'GET', path: attach });
    expect([heartbeat.status, heartbeat.headers.get('allow')]).toEqual([405, 'POST']);
    expect((await sendWeb({ method: 'PUT', contentType: 'application/json', body: '{}' })).status).toBe(405);
  });

  test('says which content types it speaks', async () => {
    for (const contentType of ['text/plain', 'application/connect+json']) {
      const answer = await sendWeb({ contentType, body: '{}' });
      expect(answer.status).toBe(415);
      const traceId = answer.headers.get('keytrail-trace-id') ?? '';
      expect(traceId).toMatch(/^[0-9a-f]{32}$/);
      expect(service.log.some((line) => line.includes(traceId) && line.includes('"status":415'))).toBe(true);
      expect(await answer.text()).toContain('application/json');
    }
  });

  test('tells an unknown route from what was not found', async () => {
    const unknown = await webRefusal(
      await sendWeb({
        path: '/keytrail.presence.v1.PresenceService/Nothing',
        contentType: 'application/json',
        body: '{}',
      }),
    );
    expect(unknown).toMatchObject({ code: Code.Unimplemented, reason: 'METHOD_UNKNOWN', http: 501 });
    const missed = await webRefusal(
      await sendWeb({ contentType: 'application/json', body: '{"userIds":["stranger"]}' }),
    );
    expect(missed).toMatchObject({ code: Code.NotFound, reason: 'NOT_FOUND_OR_NOT_PERMITTED', http: 404 });
    expect(await webRefusal(await sendWeb({ method: 'GET', path: '/favicon.ico' }))).toMatchObject({ http: 501 });
  });

  test('lets allowed origins in, and no others', async () => {
    const preflight = (origin: string) =>
      sendWeb({
        method: 'OPTIONS',
        headers: { origin, 'access-control-request-method': 'POST', 'access-control-request-headers': 'authorization' },
      });
    const allowed = await preflight('https://app.example');
    expect(allowed.status).toBe(204);
    expect(allowed.headers.get('access-control-allow-origin')).toBe('https://app.example');
    for (const name of ['authorization', 'traceparent', 'connect-timeout-ms', 'content-type'])
      expect(allowed.headers.get('access-control-allow-headers')?.toLowerCase()).toContain(name);
    expect((await preflight('https://evil.example')).status).toBe(403);

    const body = '{"userIds":["a"]}';
    const contentType = 'application/json';
    const read = await sendWeb({ contentType, body, headers: { origin: 'https://app.example' } });
    expect(read.headers.get('access-control-allow-origin')).toBe('https://app.example');
    expect(read.headers.get('access-control-expose-headers')).toContain('keytrail-trace-id');
    const other = await sendWeb({ contentType, body, headers: { origin: 'https://evil.example' } });
    expect(other.headers.get('access-control-allow-origin')).toBeNull();
  });
});
