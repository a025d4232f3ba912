// Prints what three spans of one request cost: node packages/telemetry/test/span-cost.ts
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { readSettings } from '@keytrail/settings';
import { attr, SpanKind, startTelemetry, telemetrySettings, withSpan } from '../src/index.ts';

const server = { [attr.rpcSystem]: 'grpc', [attr.rpcMethod]: 'keytrail.session.v1.SessionService/GetInitialSession' };
const client = { [attr.dbSystem]: 'postgresql', [attr.dbOperation]: 'SELECT', [attr.dbSummary]: 'get-initial-session' };
const work = async () => {};

async function traced(): Promise<void> {
  await withSpan('GetInitialSession', { kind: SpanKind.SERVER, attributes: { ...server } }, async (span) => {
    for (let i = 0; i < 2; i += 1) await withSpan('SELECT', { kind: SpanKind.CLIENT, attributes: { ...client } }, work);
    span.setAttribute(attr.rpcStatusCode, 'OK');
  });
}

async function bare(): Promise<void> {
  await (async () => {
    for (let i = 0; i < 2; i += 1) await work();
  })();
}

async function microseconds(request: () => Promise<void>, flush = async () => {}): Promise<number> {
  const requests = 40_000;
  for (let i = 0; i < requests / 5; i += 1) await request();
  const before = process.cpuUsage();
  for (let i = 0; i < requests; i += 1) {
    await request();
    if (i % 1_000 === 0) await flush();
  }
  const { user, system } = process.cpuUsage(before);
  return (user + system) / requests;
}

async function withRatio(ratio: string, otlpUrl: string): Promise<number> {
  const environment = { KEYTRAIL_ENVIRONMENT: 'development', KEYTRAIL_TRACE_RATIO: ratio, KEYTRAIL_OTLP_URL: otlpUrl };
  const telemetry = startTelemetry({ service: 'session', config: readSettings(telemetrySettings, environment) });
  const cost = await microseconds(traced, telemetry.flush);
  await telemetry.shutdown();
  return cost;
}

function print(name: string, cost: number): void {
  process.stdout.write(`${name.padEnd(40)} ${cost.toFixed(2).padStart(8)} µs per request of three spans\n`);
}

// The receiver is a process of its own, so that its work is not counted.
const store = spawn(process.execPath, [join(import.meta.dirname, '../../traces/src/bin/trace-store.ts')]);
const [line] = (await once(createInterface(store.stdout), 'line')) as [string];
const { url } = JSON.parse(line) as { url: string };
print('no spans', await microseconds(bare));
print('no-op spans', await microseconds(traced));
print('recorded and dropped', await withRatio('0', url));
print('recorded, 1 % exported', await withRatio('0.01', url));
print('recorded and exported', await withRatio('1', url));
store.kill('SIGTERM');
