import type { Server, ServerWritableStream } from '@grpc/grpc-js';
import { HealthImplementation } from 'grpc-health-check';

export interface GrpcHealth {
  addToServer(server: Server): void;
  set(serving: boolean): void;
  /** Ends the Watch streams, which nothing else does. */
  endWatches(): void;
}

/** grpc.health.v1 for the server as a whole (the empty name) and for each service. */
export function createGrpcHealth(serviceNames: readonly string[]): GrpcHealth {
  const names = ['', ...serviceNames];
  const health = new HealthImplementation(Object.fromEntries(names.map((name) => [name, 'NOT_SERVING'])));
  const watches = new Set<ServerWritableStream<unknown, unknown>>();
  return {
    addToServer(server) {
      const watched = {
        addService: (
          definition: Parameters<Server['addService']>[0],
          handlers: Parameters<Server['addService']>[1],
        ) => {
          const { watch, ...others } = handlers;
          server.addService(definition, {
            ...others,
            watch: (call: ServerWritableStream<unknown, unknown>) => {
              watches.add(call);
              call.on('cancelled', () => watches.delete(call));
              (watch as (call: ServerWritableStream<unknown, unknown>) => void)(call);
            },
          });
        },
      };
      health.addToServer(watched as Server);
    },
    set(serving) {
      for (const name of names) health.setStatus(name, serving ? 'SERVING' : 'NOT_SERVING');
    },
    endWatches() {
      for (const watch of watches) watch.end();
      watches.clear();
    },
  };
}
