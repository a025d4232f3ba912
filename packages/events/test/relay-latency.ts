// Prints how long an event takes from the return of its transaction to its handler: `node packages/events/test/relay-latency.ts`
import { randomUUID } from 'node:crypto';
import { setTimeout } from 'node:timers/promises';
import { addEvent, consumers, keyRequestDue, on } from '../src/index.ts';
import { startEventServers } from './event-servers.ts';

const perSecond = 50;
const events = 500;

const servers = await startEventServers();
await servers.reset();
const bus = await servers.connect();
const db = await servers.openDatabase();
const committed = new Map<string, number>();
const latencies: number[] = [];
await servers.consume({
  bus: await servers.connect(),
  consumer: consumers.sessionDispatcher,
  handlers: on(keyRequestDue, async ({ keyRequestId }) => {
    // The handler can win against the return of the commit.
    latencies.push(performance.now() - (committed.get(keyRequestId) ?? performance.now()));
  }),
});
servers.relay(db, bus);

const commits: number[] = [];
for (let i = 0; i < events; i++) {
  const keyRequestId = randomUUID();
  const began = performance.now();
  await db.transaction((tx) => addEvent(tx, keyRequestDue, { keyRequestId, attempt: 1 }, { aggregate: keyRequestId }));
  committed.set(keyRequestId, performance.now());
  commits.push(performance.now() - began);
  await setTimeout(1000 / perSecond);
}

function quantile(values: number[], share: number): string {
  return `${values.toSorted((a, b) => a - b)[Math.floor(values.length * share)]?.toFixed(2)} ms`;
}
for (const [name, values] of Object.entries({ 'write and commit': commits, 'commit to handler': latencies })) {
  console.log(
    `${name}: p50 ${quantile(values, 0.5)}, p99 ${quantile(values, 0.99)} (${values.length} at ${perSecond}/s)`,
  );
}
await servers.stop();
