import { startConstellation } from '../constellation.ts';

// The process behind `make up`: holds the constellation until it is told to stop. Told while it starts, it ends at once, and what
// it started is stopped by its watchdog.
const constellation = await startConstellation({
  name: 'up',
  // A stream held open by hand, with curl, sends no heartbeats; it should not end while its reader looks at the page.
  env: { KEYTRAIL_HEARTBEAT_INTERVAL_MS: '600000' },
  progress: (line) => console.error(line),
});
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
