import { type ChildProcess, type StdioOptions, spawn } from 'node:child_process';
import { once } from 'node:events';
import { type ClientHttp2Session, connect, constants } from 'node:http2';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { create, toBinary } from '@bufbuild/protobuf';
import { GetInitialSessionRequestSchema } from '@keytrail/contracts';

/** Requests per second of the chain against bare grpc-js, alternating, best of the rounds. A plain HTTP/2 client, which checks grpc-status. */
const seconds = Number(process.argv[2] ?? 4);
const rounds = Number(process.argv[3] ?? 3);
const inFlight = 64;

const message = toBinary(
  GetInitialSessionRequestSchema,
  create(GetInitialSessionRequestSchema, { conversationId: crypto.randomUUID(), sessionId: 'session_1' }),
);
const body = Buffer.alloc(5 + message.length);
body.writeUInt32BE(message.length, 1);
body.set(message, 5);

async function start(kind: string) {
  const options = { stdio: ['ignore', 'pipe', 'inherit', 'ipc'] satisfies StdioOptions };
  const child = spawn(process.execPath, [fileURLToPath(new URL('./server.ts', import.meta.url)), kind], options);
  if (child.stdout === null) throw new Error('the server has no output');
  const [line] = await once(createInterface(child.stdout), 'line');
  return { child, ...(JSON.parse(line) as { grpcPort: number; token: string }) };
}

async function measure(session: ClientHttp2Session, token: string): Promise<{ answered: number; perSecond: number }> {
  let answered = 0;
  let running = true;
  const finished: Promise<void>[] = [];
  const headers = {
    ':method': 'POST',
    ':path': '/keytrail.session.v1.SessionService/GetInitialSession',
    'content-type': 'application/grpc',
    te: 'trailers',
    'grpc-timeout': '9S',
    authorization: `Bearer ${token}`,
    [constants.HTTP2_HEADER_SCHEME]: 'http',
  };
  const one = (resolve: () => void): void => {
    const stream = session.request(headers);
    stream.on('trailers', (trailers) => {
      if (trailers['grpc-status'] !== '0')
        throw new Error(`grpc-status ${trailers['grpc-status']}: ${trailers['grpc-message']}`);
    });
    stream.on('response', (trailers) => {
      if (trailers['grpc-status'] !== undefined)
        throw new Error(`grpc-status ${trailers['grpc-status']}: ${trailers['grpc-message']}`);
    });
    stream.resume();
    stream.on('end', () => {
      answered += 1;
      if (running) one(resolve);
      else resolve();
    });
    stream.end(body);
  };
  const startedAt = performance.now();
  for (let i = 0; i < inFlight; i += 1) finished.push(new Promise<void>(one));
  await new Promise((resolve) => setTimeout(resolve, seconds * 1000));
  running = false;
  await Promise.all(finished);
  return { answered, perSecond: (answered * 1000) / (performance.now() - startedAt) };
}

/** Processor time of a server so far, in µs. */
async function processorTime(child: ChildProcess): Promise<number> {
  child.send('cpu');
  const [{ user, system }] = (await once(child, 'message')) as [NodeJS.CpuUsage];
  return user + system;
}

const servers = { bare: await start('bare'), chain: await start('chain') };
const least: Record<string, number> = { bare: Number.POSITIVE_INFINITY, chain: Number.POSITIVE_INFINITY };
for (let round = 0; round <= rounds; round += 1) {
  for (const [name, { grpcPort, token, child }] of Object.entries(servers)) {
    const session = connect(`http://127.0.0.1:${grpcPort}`);
    const before = await processorTime(child);
    const { answered, perSecond } = await measure(session, token);
    const each = ((await processorTime(child)) - before) / answered;
    session.destroy();
    if (round > 0) least[name] = Math.min(least[name] as number, each);
    const line = `${name}: ${Math.round(perSecond)} requests/s, ${each.toFixed(1)} µs of processor time each`;
    process.stdout.write(`${round === 0 ? 'warm-up ' : ''}${line}\n`);
  }
}
const ratio = (least.bare as number) / (least.chain as number);
process.stdout.write(`ratio by processor time: ${ratio.toFixed(2)}\n`);
for (const { child } of Object.values(servers)) child.kill('SIGINT');
