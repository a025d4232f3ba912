import { startConstellation } from '../constellation.ts';

// The process behind `make up`: holds the constellation until it is told to stop.
const constellation = await startConstellation({ name: 'up', progress: (line) => console.error(line) });
console.log(
  JSON.stringify({
    event: 'listening',
    services: constellation.replicas.map(({ service, grpcTarget, webUrl }) => ({ service, grpcTarget, webUrl })),
    issuer: constellation.issuer.url,
    traces: constellation.traces.url,
    servers: [constellation.postgres, constellation.redis, constellation.nats].map(
      ({ kind, version, origin, port }) => ({
        kind,
        version,
        origin,
        port,
      }),
    ),
  }),
);

const stop = async () => {
  await constellation.stop();
  process.exit(0);
};
process.once('SIGTERM', stop);
process.once('SIGINT', stop);
