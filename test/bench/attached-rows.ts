import { readFileSync } from 'node:fs';
import { type ClientHttp2Session, connect } from 'node:http2';
import { join } from 'node:path';
import { fromBinary, toBinary } from '@bufbuild/protobuf';
import { authSettings, createAuthenticator } from '@keytrail/auth';
import {
  AttachRequestSchema,
  AttachResponseSchema,
  HeartbeatRequestSchema,
  IdentityKeysService,
} from '@keytrail/contracts';
import { findFreePort, startProcess } from '@keytrail/local';
import { developmentAudience, developmentIssuer } from '@keytrail/local/constellation';
import { serverSettings, startServer, unary } from '@keytrail/rpc';
import { readSettings } from '@keytrail/settings';
import { startTelemetry, telemetrySettings } from '@keytrail/telemetry';
import type { Bench } from './bench.ts';
import { type Measured, rounded, rowOf, WrongAnswers } from './measurement.ts';
import { processorSeconds } from './processor-time.ts';

const attached = 1_000;
/** Attached before, so that what a process takes for the first ones is not counted. */
const warmUps = 200;
const idleSeconds = 10;

interface Line {
  readonly session: ClientHttp2Session;
  readonly token: string;
  connectionId: string;
}

/**
 * What devices cost a presence process that are attached, each over a connection of its own, while nothing happens but heartbeats. The
 * process is one of its own, and identity-keys a stand-in that knows every device: registering so many would take longer than the rest.
 */
export async function measureAttached({ constellation, folder, progress }: Bench): Promise<Measured> {
  const environment = environmentOf(constellation);
  const telemetry = startTelemetry({ service: 'identity-keys', config: readSettings(telemetrySettings, environment) });
  const settings = readSettings({ ...serverSettings, ...authSettings }, environment);
  const identityKeys = await startServer({
    service: 'identity-keys',
    services: [IdentityKeysService],
    rpcs: [
      unary(IdentityKeysService.method.getPrekeyStatus, { allow: ['service'], handle: () => ({ status: {} }) }),
      unary(IdentityKeysService.method.listRevokedDevices, { allow: ['service'], handle: () => ({}) }),
    ],
    config: { ...settings, grpcPort: 0, webPort: 0 },
    authenticator: createAuthenticator(settings),
    telemetry,
  });
  const grpcPort = await findFreePort();
  const presence = await startProcess({
    name: 'presence',
    args: ['services/presence/src/main.ts'],
    logFile: join(folder, 'presence-attached.log'),
    env: {
      ...environment,
      KEYTRAIL_PEER_IDENTITY_KEYS: `127.0.0.1:${identityKeys.grpcPort}`,
      KEYTRAIL_GRPC_PORT: String(grpcPort),
      KEYTRAIL_WEB_PORT: String(await findFreePort()),
    },
  });
  const lines: Line[] = [];
  const { pid } = presence;
  try {
    const tokens = await Promise.all(
      Array.from({ length: warmUps + attached }, (_, n) =>
        constellation.issuer.token({ userId: `attached-${n}`, deviceId: 'phone' }),
      ),
    );
    lines.push(...(await attachAll(`127.0.0.1:${grpcPort}`, tokens.slice(0, warmUps))));
    await pause(2_000);
    const residentBefore = residentKiB(pid);
    progress(`presence.attached: attaching ${attached} devices`);
    lines.push(...(await attachAll(`127.0.0.1:${grpcPort}`, tokens.slice(warmUps))));
    await pause(2_000);
    const perDevice = (residentKiB(pid) - residentBefore) / attached;
    progress(`presence.attached: ${idleSeconds} s of heartbeats`);
    const before = processorSeconds(pid);
    const beganAt = performance.now();
    let beats = 0;
    // Every device once in the time that they have for it, evenly.
    while (beats < lines.length) {
      const due = ((performance.now() - beganAt) / 1000 / idleSeconds) * lines.length;
      for (; beats < Math.min(due, lines.length); beats += 1) await beat(lines[beats] as Line);
      await pause(10);
    }
    const seconds = (performance.now() - beganAt) / 1000;
    const idleShare = ((processorSeconds(pid) - before) / seconds) * 100;
    return {
      rows: [
        rowOf('presence.attached.1000.memory', 'KiB', perDevice),
        rowOf('presence.attached.1000.idle', '% of a core', idleShare),
      ],
      details: {
        'presence.attached.1000': {
          devices: lines.length,
          residentKiB: residentKiB(pid),
          heartbeats: beats,
          seconds: rounded(seconds),
        },
      },
    };
  } finally {
    for (const { session } of lines) session.destroy();
    await presence.stop();
    await identityKeys.stop();
    await telemetry.shutdown();
  }
}

function environmentOf(constellation: Bench['constellation']): Record<string, string> {
  return {
    KEYTRAIL_ENVIRONMENT: 'development',
    KEYTRAIL_LOG_LEVEL: 'warn',
    KEYTRAIL_NATS_URL: constellation.nats.url,
    KEYTRAIL_REDIS_URL: constellation.redis.url,
    KEYTRAIL_JWKS_URL: constellation.issuer.jwksUrl,
    KEYTRAIL_TOKEN_ISSUER: developmentIssuer,
    KEYTRAIL_TOKEN_AUDIENCE: developmentAudience,
    KEYTRAIL_SERVICE_CREDENTIAL: constellation.serviceCredential,
    KEYTRAIL_PEER_SESSION: constellation.grpcTarget('session'),
    KEYTRAIL_PEER_CONVERSATION: constellation.grpcTarget('conversation'),
    KEYTRAIL_ATTACHES_PER_SECOND: '0',
    KEYTRAIL_ATTACHES_AT_ONCE: '0',
  };
}

async function attachAll(target: string, tokens: readonly string[]): Promise<Line[]> {
  const lines: Line[] = [];
  for (let from = 0; from < tokens.length; from += 50)
    lines.push(...(await Promise.all(tokens.slice(from, from + 50).map((token) => attach(target, token)))));
  return lines;
}

/** Resolves at the greeting; what comes after it is read and dropped. */
function attach(target: string, token: string): Promise<Line> {
  const session = connect(`http://${target}`);
  return new Promise((resolve, reject) => {
    session.on('error', reject);
    const stream = call(session, token, 'Attach', toBinary(AttachRequestSchema, attachRequest));
    let read = Buffer.alloc(0);
    stream.on('error', reject);
    stream.on('end', () => reject(new WrongAnswers('a stream ended')));
    stream.on('data', (bytes: Buffer) => {
      read = Buffer.concat([read, bytes]);
      if (read.length < 5 || read.length < 5 + read.readUInt32BE(1)) return;
      const { message } = fromBinary(AttachResponseSchema, read.subarray(5, 5 + read.readUInt32BE(1)));
      if (message.case === 'greeting') resolve({ session, token, connectionId: message.value.connectionId });
      read = Buffer.alloc(0);
    });
  });
}

const attachRequest = {
  $typeName: 'keytrail.presence.v1.AttachRequest',
  attachCounter: 1n,
  conversationCursor: '',
  sessionCursor: '',
} as const;

function beat({ session, token, connectionId }: Line): Promise<void> {
  const request = { $typeName: 'keytrail.presence.v1.HeartbeatRequest', connectionId } as const;
  return new Promise((resolve, reject) => {
    const stream = call(session, token, 'Heartbeat', toBinary(HeartbeatRequestSchema, request));
    let status = '';
    stream.on('trailers', (trailers) => {
      status = String(trailers['grpc-status']);
    });
    stream.on('error', reject);
    stream.on('close', () => (status === '0' ? resolve() : reject(new WrongAnswers(`a heartbeat: ${status}`))));
    stream.resume();
  });
}

function call(session: ClientHttp2Session, token: string, method: string, request: Uint8Array) {
  const stream = session.request({
    ':method': 'POST',
    ':path': `/keytrail.presence.v1.PresenceService/${method}`,
    'content-type': 'application/grpc',
    te: 'trailers',
    authorization: `Bearer ${token}`,
  });
  const head = Buffer.alloc(5);
  head.writeUInt32BE(request.length, 1);
  stream.end(Buffer.concat([head, request]));
  return stream;
}

/** Resident memory of a process, KiB; NaN where there is no /proc. */
function residentKiB(pid: number): number {
  try {
    return Number(/^VmRSS:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1] ?? Number.NaN);
  } catch {
    return Number.NaN;
  }
}

function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
