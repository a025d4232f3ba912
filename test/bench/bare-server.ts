import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { create, fromBinary, toBinary } from '@bufbuild/protobuf';
import { timestampFromDate } from '@bufbuild/protobuf/wkt';
import { Server, ServerCredentials, type ServerUnaryCall, type sendUnaryData } from '@grpc/grpc-js';
import {
  type GetInitialSessionRequest,
  GetInitialSessionRequestSchema,
  GetInitialSessionResponseSchema,
} from '@keytrail/contracts';
import pg from 'pg';
import { readInitialSessionStatement } from '../../services/session/src/store/initial-session.ts';

/**
 * What GetInitialSession costs without Keytrail: grpc-js and `pg`, or node:http and `pg`, the same statement, prepared, over the same
 * database with as many connections, the same bytes as answer. No authentication, validation, limits, deadline, telemetry or trailers:
 * who asks stands in two plain headers, `user` and `device`.
 */
const url = process.env.KEYTRAIL_DATABASE_URL;
const pool = new pg.Pool({
  connectionString: url,
  max: Number(process.env.KEYTRAIL_DATABASE_CONNECTIONS),
  keepAlive: true,
});
pool.on('error', () => {});
const { name, text } = readInitialSessionStatement;
const none = new Uint8Array();

async function read(
  { conversationId, sessionId }: GetInitialSessionRequest,
  user: string,
  device: string,
): Promise<Buffer | undefined> {
  const { rows } = await pool.query({ name, text, values: [conversationId, sessionId, user, device] });
  const [row] = rows;
  if (row === undefined) return undefined;
  const bytes = toBinary(
    GetInitialSessionResponseSchema,
    create(GetInitialSessionResponseSchema, {
      sessionId,
      epoch: BigInt(row.epoch),
      signedHeader: { header: row.header ?? none, signature: row.header_signature ?? none },
      initiator: { userId: row.initiator_user_id, deviceId: row.initiator_device_id },
      initiatorIdentityKey: row.initiator_identity_key ?? none,
      initiatorSigningKey: row.initiator_signing_key ?? none,
      initiatorEphemeralKey: row.initiator_ephemeral_key ?? none,
      initiatorCertificate: {
        rootKey: row.initiator_root_key,
        suite: row.initiator_suite,
        certifiedAt: timestampFromDate(row.initiator_certified_at),
        signature: row.initiator_certificate_signature,
      },
      keyCommitment: row.key_commitment ?? none,
      envelope: {
        recipient: { userId: user, deviceId: device },
        sealer: { userId: row.sealer_user_id, deviceId: row.sealer_device_id },
        attempt: row.attempt,
        sealerIdentityKey: row.sealer_identity_key,
        sealerSigningKey: row.sealer_signing_key,
        sealerCertificate: {
          rootKey: row.sealer_root_key,
          suite: row.sealer_suite,
          certifiedAt: timestampFromDate(row.sealer_certified_at),
          signature: row.sealer_certificate_signature,
        },
        sealerEphemeralKey: row.sealer_ephemeral_key,
        signedPrekeyId: Number(row.signed_prekey_id),
        oneTimePrekeyId: Number(row.one_time_prekey_id),
        kemPrekeyId: Number(row.kem_prekey_id),
        kemCiphertext: row.kem_ciphertext,
        ciphertext: row.ciphertext,
        signature: row.signature,
      },
      createdAt: timestampFromDate(row.created_at),
    }),
  );
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

type Call = ServerUnaryCall<GetInitialSessionRequest, Buffer>;

function answerGrpc(call: Call, respond: sendUnaryData<Buffer>): void {
  const [user] = call.metadata.get('user');
  const [device] = call.metadata.get('device');
  read(call.request, String(user), String(device)).then(
    (answer) => (answer ? respond(null, answer) : respond({ code: 5, details: 'not found' })),
    (error: Error) => respond({ code: 13, details: error.message }),
  );
}

const grpc = new Server();
grpc.addService(
  {
    GetInitialSession: {
      path: '/keytrail.session.v1.SessionService/GetInitialSession',
      requestStream: false,
      responseStream: false,
      requestSerialize: (request: Buffer) => request,
      requestDeserialize: (bytes: Buffer) => fromBinary(GetInitialSessionRequestSchema, bytes),
      responseSerialize: (answer: Buffer) => answer,
      responseDeserialize: (bytes: Buffer) => bytes,
    },
  },
  { GetInitialSession: answerGrpc },
);

async function answerHttp(request: IncomingMessage, response: ServerResponse): Promise<void> {
  const chunks: Buffer[] = [];
  for await (const chunk of request) chunks.push(chunk as Buffer);
  const message = fromBinary(GetInitialSessionRequestSchema, Buffer.concat(chunks));
  const answer = await read(message, String(request.headers.user), String(request.headers.device));
  if (answer === undefined) response.writeHead(404).end();
  else
    response.writeHead(200, { 'content-type': 'application/proto', 'content-length': answer.byteLength }).end(answer);
}

const http = createServer((request, response) => {
  answerHttp(request, response).catch(() => response.writeHead(500).end());
});

const grpcPort = await new Promise<number>((resolve, reject) =>
  grpc.bindAsync('127.0.0.1:0', ServerCredentials.createInsecure(), (error, port) =>
    error ? reject(error) : resolve(port),
  ),
);
await new Promise<void>((resolve) => http.listen(0, '127.0.0.1', resolve));
const { port: webPort } = http.address() as AddressInfo;
process.stdout.write(`${JSON.stringify({ event: 'listening', grpcPort, webPort })}\n`);
process.on('SIGTERM', () => process.exit());
