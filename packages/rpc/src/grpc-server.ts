import type { DescService } from '@bufbuild/protobuf';
import {
  type MethodDefinition,
  Server,
  ServerCredentials,
  type ServiceDefinition,
  type UntypedServiceImplementation,
} from '@grpc/grpc-js';
import type { ServerConfig } from './config.ts';
import type { Endpoint } from './endpoint.ts';
import { answerGrpcStream, answerGrpcUnary } from './grpc-call.ts';
import { createGrpcHealth, type GrpcHealth } from './grpc-health.ts';
import { addReflection } from './grpc-reflection.ts';

export interface GrpcServer {
  readonly port: number;
  readonly health: GrpcHealth;
  /** Takes no new connections and resolves when the open calls have ended. */
  drain(): Promise<void>;
  /** Ends what is still open. */
  close(): void;
}

export interface GrpcServerOptions {
  readonly config: ServerConfig;
  readonly services: readonly DescService[];
  /** By `package.Service/Method`. */
  readonly endpoints: ReadonlyMap<string, Endpoint>;
  readonly unknown: Endpoint;
}

export async function startGrpcServer({
  config,
  services,
  endpoints,
  unknown,
}: GrpcServerOptions): Promise<GrpcServer> {
  const largest = Math.max(config.maxMessageBytes, ...[...endpoints.values()].map((each) => each.maxRequestBytes));
  const server = new Server({
    // A request somewhat too large reaches the chain, which says so in full; beyond that grpc-js cuts it off.
    'grpc.max_receive_message_length': largest * 2,
    'grpc.max_send_message_length': -1,
    'grpc.max_connection_age_ms': config.maxConnectionAgeMs,
    'grpc.keepalive_time_ms': 60_000,
    'grpc.keepalive_timeout_ms': 20_000,
  });
  for (const service of services) server.addService(definitionOf(service), handlersOf(service, endpoints, unknown));
  answerUnknownMethods(server, unknown);
  const health = createGrpcHealth(services.map(({ typeName }) => typeName));
  health.addToServer(server);
  addReflection(server, services);
  const port = await new Promise<number>((resolve, reject) => {
    server.bindAsync(`${config.host}:${config.grpcPort}`, ServerCredentials.createInsecure(), (error, bound) =>
      error === null ? resolve(bound) : reject(error),
    );
  });
  return {
    port,
    health,
    drain: () => {
      health.endWatches();
      return new Promise((resolve) => server.tryShutdown(() => resolve()));
    },
    close: () => server.forceShutdown(),
  };
}

/** Requests stay bytes here: what cannot be decoded is refused by the chain, with the field, not by grpc-js as INTERNAL. */
const rawMessages = {
  requestSerialize: asBuffer,
  requestDeserialize: asBytes,
  responseSerialize: asBuffer,
  responseDeserialize: asBytes,
};

function definitionOf(service: DescService): ServiceDefinition {
  return Object.fromEntries(
    service.methods.map((method): [string, MethodDefinition<Uint8Array, Uint8Array>] => [
      method.name,
      {
        ...rawMessages,
        path: `/${service.typeName}/${method.name}`,
        requestStream: method.methodKind === 'client_streaming' || method.methodKind === 'bidi_streaming',
        responseStream: method.methodKind !== 'unary' && method.methodKind !== 'client_streaming',
      },
    ]),
  );
}

function handlersOf(
  service: DescService,
  endpoints: ReadonlyMap<string, Endpoint>,
  unknown: Endpoint,
): UntypedServiceImplementation {
  return Object.fromEntries(
    service.methods.map((method): [string, UntypedServiceImplementation[string]] => {
      const endpoint = endpoints.get(`${service.typeName}/${method.name}`) ?? unknown;
      return [
        method.name,
        method.methodKind === 'unary'
          ? answerGrpcUnary.bind(undefined, endpoint)
          : answerGrpcStream.bind(undefined, endpoint),
      ];
    }),
  );
}

/** grpc-js has no hook for unknown paths; should this one go, they get its plain UNIMPLEMENTED. */
function answerUnknownMethods(server: Server, unknown: Endpoint): void {
  const internals = server as unknown as { _retrieveHandler?: (path: string) => unknown };
  const retrieve = internals._retrieveHandler?.bind(server);
  if (retrieve === undefined) return;
  const handler = {
    func: answerGrpcUnary.bind(undefined, unknown),
    serialize: asBuffer,
    deserialize: asBytes,
    type: 'unary',
    path: unknown.name,
  };
  internals._retrieveHandler = (path) => retrieve(path) ?? handler;
}

function asBuffer(bytes: Uint8Array): Buffer {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/** A plain view, so that `bytes` fields are plain on both wires: slices of a Buffer share its memory. */
function asBytes(buffer: Buffer): Uint8Array {
  return new Uint8Array(buffer.buffer, buffer.byteOffset, buffer.byteLength);
}
