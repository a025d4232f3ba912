/** Stands for a service: prints where it listens, answers with its colour, and takes its time to stop when told so. */
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';

const colour = process.env.COLOUR ?? 'none';
if (colour === 'broken') {
  console.error('the paint has dried up');
  process.exit(7);
}
const server = createServer((_request, response) => response.end(colour));
server.listen(0, '127.0.0.1', () => {
  console.log('not a line of JSON');
  console.log(
    JSON.stringify({
      event: 'listening',
      port: (server.address() as AddressInfo).port,
      inherited: Object.keys(process.env).length,
    }),
  );
});
process.on('SIGTERM', () => {
  if (colour === 'stubborn') return;
  console.log(JSON.stringify({ event: 'stopped' }));
  process.exit(0);
});
