import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';

// Takes the telemetry that the services export and drops it: what a collector costs is not part of what is measured.
const server = createServer((request, response) => {
  request.resume().once('end', () => response.writeHead(200, { 'content-type': 'application/json' }).end('{}'));
});
server.listen(0, '127.0.0.1', () => {
  console.log(JSON.stringify({ event: 'listening', port: (server.address() as AddressInfo).port }));
});
