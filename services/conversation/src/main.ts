import { readConfig } from './config.ts';
import { createConversationServer } from './service.ts';

const server = createConversationServer(readConfig(process.env));
let stopping = false;
for (const signal of ['SIGTERM', 'SIGINT'] as const)
  process.on(signal, () => {
    if (stopping) return;
    stopping = true;
    server.stop().catch((error: unknown) => {
      console.error(error);
      process.exitCode = 1;
    });
  });
const ports = await server.start();
console.log(JSON.stringify({ event: 'listening', service: 'conversation', ...ports, pid: process.pid }));
