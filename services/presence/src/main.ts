import { readConfig } from './config.ts';
import { startPresence } from './service.ts';

const presence = await startPresence(readConfig(process.env));
console.log(
  JSON.stringify({
    event: 'listening',
    service: 'presence',
    grpcPort: presence.grpcPort,
    webPort: presence.webPort,
    pid: process.pid,
  }),
);

const stop = async () => {
  await presence.stop();
  process.exit(0);
};
process.once('SIGTERM', stop);
process.once('SIGINT', stop);
