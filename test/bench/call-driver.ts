import { randomUUID } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { type ClientHttp2Session, connect } from 'node:http2';

/**
 * Callers with a connection and a token each, who call one method over gRPC, one call after the other, for some seconds: a process of
 * its own that does as little as a caller can (no Protobuf, no library), as it shares the cores with the servers. Prints what it counted.
 */
export interface CallPlan {
  /** `host:port`. */
  readonly address: string;
  readonly path: string;
  readonly callers: readonly PlannedCaller[];
  /** Base64; callers without requests of their own take these at random. */
  readonly requests: readonly string[];
  /** Where in the request a fresh UUID is written before each call, if anywhere. */
  readonly uuidAt?: number;
  /** An answer of another size is a wrong one. */
  readonly answerBytes: { readonly least: number; readonly most: number };
  readonly seconds: number;
}

export interface PlannedCaller {
  readonly headers: Readonly<Record<string, string>>;
  /** Base64, to be sent once each, in turn: the caller is done then. */
  readonly requests?: readonly string[];
}

export interface CallCount {
  readonly answered: number;
  readonly seconds: number;
  readonly p50Ms: number;
  readonly p99Ms: number;
  /** What the first wrong answers were; empty when all were right. */
  readonly wrong: readonly string[];
}

const plan = JSON.parse(readFileSync(process.argv[2] as string, 'utf8')) as CallPlan;
const prefix = 5;
const shared = plan.requests.map(frameOf);
const took: number[] = [];
const wrong: string[] = [];

const sessions = await Promise.all(
  plan.callers.map(
    () =>
      new Promise<ClientHttp2Session>((resolve, reject) => {
        const session = connect(`http://${plan.address}`, {
          settings: { initialWindowSize: 1 << 22, enablePush: false },
        });
        session.once('error', reject);
        session.once('connect', () => {
          session.setLocalWindowSize(1 << 24);
          resolve(session);
        });
      }),
  ),
);
const own = plan.callers.map(({ requests }) => requests?.map(frameOf));
const startedAt = performance.now();
const endAt = startedAt + plan.seconds * 1000;
await Promise.all(sessions.map((session, n) => keepCalling(session, plan.callers[n] as PlannedCaller, own[n])));
const seconds = (performance.now() - startedAt) / 1000;
for (const session of sessions) session.close();
took.sort((a, b) => a - b);
const count: CallCount = { answered: took.length, seconds, p50Ms: at(0.5), p99Ms: at(0.99), wrong: wrong.slice(0, 5) };
process.stdout.write(JSON.stringify(count));

function frameOf(request: string): Buffer {
  const message = Buffer.from(request, 'base64');
  const frame = Buffer.alloc(prefix + message.byteLength);
  frame.writeUInt32BE(message.byteLength, 1);
  message.copy(frame, prefix);
  return frame;
}

async function keepCalling(session: ClientHttp2Session, caller: PlannedCaller, own?: Buffer[]): Promise<void> {
  const headers = {
    ...caller.headers,
    ':method': 'POST',
    ':path': plan.path,
    te: 'trailers',
    'content-type': 'application/grpc',
  };
  while (performance.now() < endAt && wrong.length === 0) {
    const frame = own ? own.shift() : shared[Math.floor(Math.random() * shared.length)];
    if (!frame) return;
    let request = frame;
    if (plan.uuidAt !== undefined) {
      request = Buffer.from(frame);
      request.write(randomUUID(), prefix + plan.uuidAt, 'latin1');
    }
    const calledAt = performance.now();
    const fault = await call(session, headers, request);
    if (fault === undefined) took.push(performance.now() - calledAt);
    else wrong.push(fault);
  }
}

/** Resolves with what was wrong with the answer, if anything was. */
function call(
  session: ClientHttp2Session,
  headers: Record<string, string>,
  request: Buffer,
): Promise<string | undefined> {
  return new Promise((resolve) => {
    const stream = session.request(headers);
    let bytes = -prefix;
    let status: unknown;
    let message: unknown;
    const readStatus = (fields: Record<string, unknown>) => {
      status ??= fields['grpc-status'];
      message ??= fields['grpc-message'];
    };
    stream.on('response', readStatus);
    stream.on('trailers', readStatus);
    stream.on('data', (chunk: Buffer) => {
      bytes += chunk.byteLength;
    });
    stream.once('error', (error) => resolve(String(error)));
    stream.once('end', () => {
      const { least, most } = plan.answerBytes;
      if (status !== '0') resolve(`status ${status}: ${message}`);
      else if (bytes < least || bytes > most) resolve(`an answer of ${bytes} bytes`);
      else resolve(undefined);
    });
    stream.end(request);
  });
}

function at(q: number): number {
  return took[Math.max(0, Math.ceil(q * took.length) - 1)] ?? Number.NaN;
}
