import { create, fromBinary, toBinary } from '@bufbuild/protobuf';
import { Server, ServerCredentials } from '@grpc/grpc-js';
import { createAuthenticator } from '@keytrail/auth';
import { startIssuer } from '@keytrail/auth/issuer';
import { GetInitialSessionRequestSchema, GetInitialSessionResponseSchema, SessionService } from '@keytrail/contracts';
import { readSettings } from '@keytrail/settings';
import { startTelemetry, telemetrySettings } from '@keytrail/telemetry';
import { serverSettings, startServer, unary } from '../src/index.ts';

/** The same no-op handler, bare on grpc-js or behind the whole chain. Prints its ports and a token. */
const answer = {
  sessionId: 's1',
  epoch: 1n,
  initiatorIdentityKey: new Uint8Array(32),
  initiatorSigningKey: new Uint8Array(32),
  initiatorEphemeralKey: new Uint8Array(32),
  keyCommitment: new Uint8Array(32),
  signedHeader: { header: new Uint8Array(600), signature: new Uint8Array(64) },
  envelope: { kemCiphertext: new Uint8Array(1088), ciphertext: new Uint8Array(48), signature: new Uint8Array(64) },
};

if (process.argv[2] === 'bare') {
  const server = new Server();
  const method = {
    path: '/keytrail.session.v1.SessionService/GetInitialSession',
    requestStream: false,
    responseStream: false,
    requestSerialize: (value: Buffer) => value,
    requestDeserialize: (bytes: Buffer) => fromBinary(GetInitialSessionRequestSchema, bytes),
    responseSerialize: (value: object) =>
      Buffer.from(toBinary(GetInitialSessionResponseSchema, create(GetInitialSessionResponseSchema, value))),
    responseDeserialize: (bytes: Buffer) => bytes,
  };
  server.addService(
    { GetInitialSession: method },
    {
      GetInitialSession: (_call: unknown, respond: (error: null, value: object) => void) => respond(null, answer),
    },
  );
  server.bindAsync('127.0.0.1:0', ServerCredentials.createInsecure(), (_error, port) =>
    process.stdout.write(`${JSON.stringify({ grpcPort: port, token: 'none' })}\n`),
  );
} else {
  const issuer = await startIssuer({ environment: 'development' });
  const server = await startServer({
    service: 'session',
    services: [SessionService],
    config: readSettings(serverSettings, {
      KEYTRAIL_CALLER_REQUESTS_PER_SECOND: '1000000',
      KEYTRAIL_CALLER_BURST: '1000000',
      KEYTRAIL_CALLER_IN_FLIGHT: '10000',
    }),
    telemetry: startTelemetry({
      service: 'session',
      config: readSettings(telemetrySettings, { KEYTRAIL_ENVIRONMENT: 'development', KEYTRAIL_LOG_LEVEL: 'error' }),
    }),
    authenticator: createAuthenticator({
      jwksUrl: issuer.jwksUrl,
      tokenIssuer: issuer.issuer,
      tokenAudience: issuer.audience,
      serviceCredential: undefined,
      tokenCacheSize: 1000,
      jwksCooldownMs: 5000,
    }),
    rpcs: [unary(SessionService.method.getInitialSession, { allow: ['device'], handle: async () => answer })],
  });
  const token = await issuer.token({ userId: 'alice', deviceId: 'phone' });
  process.stdout.write(`${JSON.stringify({ grpcPort: server.grpcPort, webPort: server.webPort, token })}\n`);
}
process.on('SIGINT', () => process.exit());
process.on('message', () => process.send?.(process.cpuUsage()));
