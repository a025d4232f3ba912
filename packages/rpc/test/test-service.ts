import { type Client, Code, ConnectError, createClient, type Transport } from '@connectrpc/connect';
import { createConnectTransport, createGrpcWebTransport, compressionGzip as gzip } from '@connectrpc/connect-node';
import { AuthenticationError, type Caller } from '@keytrail/auth';
import { MissCause, PresenceService, Recovery, Remedy } from '@keytrail/contracts';
import { readSettings } from '@keytrail/settings';
import { startTelemetry, type Telemetry, telemetrySettings } from '@keytrail/telemetry';
import {
  type Call,
  createGrpcTransport,
  type GrpcTransport,
  type Readiness,
  type RpcOptions,
  type RunningServer,
  refuse,
  refuseMiss,
  type ServerConfig,
  serverSettings,
  serverStream,
  startServer,
  unary,
} from '../src/index.ts';

/** PresenceService with handlers that do as the test says: the first user id of ListOnline is the deed. */
export interface TestService {
  readonly server: RunningServer;
  readonly log: string[];
  readonly calls: Call[];
  stop(): Promise<void>;
}

export interface TestServiceOptions {
  readonly config?: Partial<ServerConfig>;
  readonly limit?: RpcOptions['limit'];
  readonly readiness?: () => Promise<Readiness>;
  readonly gate?: { closed: Error | undefined };
  readonly onCall?: (call: Call) => void | Promise<void>;
  readonly attach?: (
    call: Call,
  ) => AsyncIterable<{ message: { case: 'draining'; value: { reconnectAfterMs: number } } }>;
}

const callers: Readonly<Record<string, Caller>> = {
  'Bearer alice': {
    kind: 'device',
    userId: 'alice',
    deviceId: 'phone',
    expiresAtMs: Number.POSITIVE_INFINITY,
    scopes: new Set(),
  },
  'Bearer bob': {
    kind: 'device',
    userId: 'bob',
    deviceId: 'phone',
    expiresAtMs: Number.POSITIVE_INFINITY,
    scopes: new Set(),
  },
  'Bearer olga': { kind: 'operator', subject: 'olga', scopes: new Set() },
  'Keytrail-Service session x': { kind: 'service', service: 'session' },
  'Keytrail-Service conversation x': { kind: 'service', service: 'conversation' },
};

export const authenticator = {
  authenticate(authorization: string | undefined): Caller | Promise<Caller> {
    if (authorization === undefined) throw new AuthenticationError('missing', 'the call carries no bearer token');
    const caller = callers[authorization];
    if (caller === undefined) throw new AuthenticationError('signature', 'the signature does not verify');
    return caller;
  },
};

const never = new Promise<never>(() => {});

const deeds: Readonly<Record<string, (call: Call) => unknown>> = {
  crash: () => {
    throw new Error('a secret detail of the server');
  },
  'throw-text': () => {
    throw 'a secret text';
  },
  'foreign-error': () => {
    throw new ConnectError('a secret of a library', Code.DataLoss);
  },
  hang: () => never,
  unserialisable: () => ({ devices: [{ attachedAt: { seconds: 'soon' } }] }),
  'too-large': () => ({ devices: [{ device: { userId: 'a'.repeat(5 * 1024 * 1024) } }] }),
  conflict: () => {
    throw refuse('EPOCH_CONFLICT', 'another session won this epoch', {
      metadata: { current_epoch: '7', current_session_id: 's7', current_roster_version: '3' },
    });
  },
  unavailable: () => {
    throw refuse('EXPLANATION_INCOMPLETE', 'conversation could not be asked', {
      metadata: { peer: 'conversation' },
      retryAfterMs: 1500,
    });
  },
  miss: () => {
    throw refuseMiss({
      cause: MissCause.DEVICE_ADDED_AFTER_SESSION,
      recovery: Recovery.REQUESTABLE,
      remedy: Remedy.REQUEST_KEY,
      evidence: { device_added_in_version: '4', session_device_list_version: '3' },
      retryAfterMs: 250,
    });
  },
  stranger: () => {
    throw refuseMiss({ cause: MissCause.NOT_FOUND_OR_NOT_PERMITTED, recovery: Recovery.NOT_PERMITTED });
  },
};

export async function startTestService(options: TestServiceOptions = {}): Promise<TestService> {
  const log: string[] = [];
  const calls: Call[] = [];
  const telemetry: Telemetry = startTelemetry({
    service: 'presence',
    config: readSettings(telemetrySettings, { KEYTRAIL_ENVIRONMENT: 'development', KEYTRAIL_TRACE_RATIO: '0' }),
    logTo: { write: (line: string) => void log.push(line) },
  });
  const server = await startServer({
    service: 'presence',
    services: [PresenceService],
    authenticator,
    telemetry,
    config: { ...readSettings(serverSettings, { KEYTRAIL_ALLOWED_ORIGINS: 'https://app.example' }), ...options.config },
    ...(options.readiness === undefined ? {} : { readiness: options.readiness }),
    gate: options.gate,
    rpcs: [
      unary(PresenceService.method.listOnline, {
        allow: ['device', 'service:session'],
        ...(options.limit === undefined ? {} : { limit: options.limit }),
        async handle({ userIds }, call) {
          calls.push(call);
          await options.onCall?.(call);
          const deed = deeds[userIds[0] ?? ''];
          if (deed !== undefined) return (await deed(call)) as object;
          return { devices: userIds.map((userId) => ({ device: { userId, deviceId: 'phone' } })) };
        },
      }),
      serverStream(PresenceService.method.attach, {
        allow: ['device'],
        async *handle({ attachCounter }, call) {
          calls.push(call);
          if (options.attach !== undefined) return yield* options.attach(call);
          for (let n = 0n; n < attachCounter && n < 1000n; n += 1n)
            yield { message: { case: 'greeting' as const, value: { connectionId: `${n}`.padStart(200, '0') } } };
          if (attachCounter === 13n)
            throw refuse('CONNECTION_SUPERSEDED', 'a newer one won', { metadata: { connection_id: 'c' } });
          if (attachCounter === 14n) throw new Error('a secret detail of the server');
          return undefined;
        },
      }),
    ],
  });
  return {
    server,
    log,
    calls,
    async stop() {
      await server.stop();
      await telemetry.shutdown();
    },
  };
}

export interface WireUnderTest {
  readonly wire: string;
  readonly client: Client<typeof PresenceService>;
  readonly transport: Transport;
}

/** Clients of the service on every wire and protocol, made by those who speak them best. */
export function clientsOf(
  { server }: TestService,
  authorization?: string,
): { wires: WireUnderTest[]; grpc: GrpcTransport; close(): void } {
  const grpc = createGrpcTransport({
    target: `127.0.0.1:${server.grpcPort}`,
    ...(authorization === undefined ? {} : { authorization: () => authorization }),
  });
  const web = {
    baseUrl: `http://127.0.0.1:${server.webPort}`,
    httpVersion: '1.1' as const,
    interceptors: [
      (next: (request: never) => Promise<never>) => (request: { header: Headers }) => {
        if (authorization !== undefined) request.header.set('authorization', authorization);
        return next(request as never);
      },
    ] as never[],
  };
  const transports: [string, Transport][] = [
    ['gRPC', grpc],
    ['Connect, binary', createConnectTransport({ ...web, useBinaryFormat: true })],
    ['Connect, JSON', createConnectTransport({ ...web, useBinaryFormat: false })],
    ['Connect, JSON by GET', createConnectTransport({ ...web, useBinaryFormat: false, useHttpGet: true })],
    [
      'Connect, gzip',
      createConnectTransport({ ...web, useBinaryFormat: true, sendCompression: gzip, compressMinBytes: 0 }),
    ],
    ['gRPC-Web', createGrpcWebTransport({ ...web, useBinaryFormat: true })],
    [
      'gRPC-Web, JSON, gzip',
      createGrpcWebTransport({ ...web, useBinaryFormat: false, sendCompression: gzip, compressMinBytes: 0 }),
    ],
  ];
  return {
    wires: transports.map(([wire, transport]) => ({
      wire,
      transport,
      client: createClient(PresenceService, transport),
    })),
    grpc,
    close: () => grpc.close(),
  };
}
