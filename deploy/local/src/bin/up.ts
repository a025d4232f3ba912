import { mkdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { checkoutFolder } from '../checkout.ts';
import { exclusively } from '../exclusively.ts';
import { startProcess } from '../processes.ts';
import { isRecordedAlive, type StopRecord, stopRecorded } from '../supervision/stop-recorded.ts';
import { writeOperatorToken } from '../up-environment.ts';
import { operatorTokenFile, readUpState, removeUpState, type UpState, writeUpState } from './up-state.ts';

const { values } = parseArgs({ options: { json: { type: 'boolean' }, help: { type: 'boolean', short: 'h' } } });
if (values.help) {
  console.log(`Usage: make up

Starts PostgreSQL, Redis, NATS, a development issuer, a trace store and the four services in the background, on free ports,
and prints where they listen. State: .local/up.json, shell variables: .local/up.env, logs: .local/up/. Stop with: make down
  --json   print the state as JSON
Exit codes: 0 running, 1 could not start.`);
  process.exit(0);
}

const folder = join(checkoutFolder, '.local');
mkdirSync(join(folder, 'up'), { recursive: true });
let starting: StopRecord | undefined;
let interrupted = false;
for (const [signal, code] of [
  ['SIGINT', 130],
  ['SIGTERM', 143],
  ['SIGHUP', 129],
] as const) {
  process.once(signal, async () => {
    interrupted = true;
    console.error('Stopping what was started so far.');
    if (starting) await stopRecorded(starting);
    process.exit(code);
  });
}

try {
  // Two at once in one checkout would each start everything, and only one could be stopped again.
  await exclusively(join(folder, 'up.lock'), up);
  process.exit(0);
} catch (error) {
  // Whoever interrupted it hears from the handler of the signal.
  if (!interrupted) {
    console.error(error instanceof Error ? error.message : error);
    process.exit(1);
  }
}

async function up(): Promise<void> {
  const running = readUpState();
  if (running && isRecordedAlive(running.record)) {
    console.error('Keytrail is up already.');
    print(running);
    return;
  }
  removeUpState();
  console.error('Starting Keytrail; the first time this downloads what the machine lacks. Log: .local/up/host.log');
  rmSync(join(folder, 'up', 'host.log'), { force: true });
  const host = await startProcess({
    name: 'keytrail',
    args: ['deploy/local/src/bin/host.ts'],
    logFile: join(folder, 'up', 'host.log'),
    // Explicit servers and ways of getting them, and Go for the way that needs it, must reach the host.
    env: Object.fromEntries(
      Object.entries(process.env).filter(
        (entry): entry is [string, string] =>
          entry[1] !== undefined && /^(KEYTRAIL_|GO|DOCKER_|npm_config_)/i.test(entry[0]),
      ),
    ),
    readyTimeoutMs: 300_000,
    graceMs: 30_000,
    detached: true,
    launched: (record) => {
      starting = record;
    },
  });
  const line = await host.waitForLine((each) => each.event === 'listening');
  const { event: _, ...rest } = line as { event: string } & Omit<UpState, 'record'>;
  const state: UpState = { record: host.record, ...rest };
  await writeOperatorToken(state.issuer, operatorTokenFile);
  writeUpState(state);
  starting = undefined;
  print(state);
}

function print(state: UpState): void {
  if (values.json) {
    console.log(JSON.stringify(state, null, 2));
    return;
  }
  for (const { kind, version, origin, port } of state.servers) {
    console.log(`${kind.padEnd(14)} 127.0.0.1:${port}  (${version}, from ${origin})`);
  }
  for (const { service, grpcTarget, webUrl } of state.services) {
    console.log(`${service.padEnd(14)} gRPC ${grpcTarget}  web ${webUrl}`);
  }
  console.log(`${'issuer'.padEnd(14)} ${state.issuer}  (development tokens: POST /token {"user","device"})`);
  console.log(`${'traces'.padEnd(14)} ${state.traces}  (GET /traces/<trace id>)`);
  console.log('\nFor the examples of the README and bin/keytrail: . .local/up.env     Stop: make down');
}
