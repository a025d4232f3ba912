import { createSession, readConfig } from './service.ts';

const service = createSession(readConfig(process.env));

async function stop(): Promise<void> {
  await service.stop();
  process.exit(0);
}
process.once('SIGTERM', stop);
process.once('SIGINT', stop);

const { grpcPort, webPort } = await service.start();
process.stdout.write(
  `${JSON.stringify({ event: 'listening', service: 'session', grpcPort, webPort, pid: process.pid })}\n`,
);
