import { readConfig } from './config.ts';
import { createIdentityKeys } from './service.ts';

const service = createIdentityKeys(readConfig(process.env));
let stopping = false;
for (const signal of ['SIGTERM', 'SIGINT'] as const)
  process.on(signal, () => {
    if (stopping) return;
    stopping = true;
    service.stop().catch((error: unknown) => {
      console.error(error);
      process.exitCode = 1;
    });
  });
const ports = await service.start();
console.log(JSON.stringify({ event: 'listening', service: 'identity-keys', ...ports, pid: process.pid }));
