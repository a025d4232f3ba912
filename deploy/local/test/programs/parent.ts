/** Starts one of each, prints their records as one line of JSON, and ends as its argument says: `wait`, `exit` or `throw`. */
import { ensureNats, ensurePostgres, ensureRedis, startProcess } from '../../src/index.ts';

const [ending, logFile] = process.argv.slice(2);
const servers = await Promise.all([
  ensurePostgres({ own: true }),
  ensureRedis({ own: true }),
  ensureNats({ own: true }),
]);
const service = await startProcess({
  name: 'echo',
  args: ['deploy/local/test/programs/service.ts'],
  logFile: String(logFile),
});
console.log(JSON.stringify([...servers, service].map((handle) => handle.record)));
if (ending === 'exit') process.exit(3);
if (ending === 'throw') throw new Error('a crash');
