import { startConstellation } from '../constellation.ts';
import { writeUpDatabases } from './up-state.ts';

// The process behind `make up`: holds the constellation until it is told to stop. Told while it starts, it stops once everything is there:
// a server that was just spawned, and that nobody knows of yet, would be left behind.
let told = false;
let stop = async () => {
  told = true;
};
for (const signal of ['SIGTERM', 'SIGINT'] as const) process.on(signal, () => void stop());

const constellation = await startConstellation({
  name: 'up',
  // A stream held open by hand, with curl, sends no heartbeats; it should not end while its reader looks at the page.
  env: { KEYTRAIL_HEARTBEAT_INTERVAL_MS: '600000' },
  progress: (line) => console.error(line),
});
stop = async () => {
  await constellation.stop();
  process.exit(0);
};
if (told) await stop();

writeUpDatabases(constellation.databaseUrls);

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
