import { create, fromBinary, type MessageInitShape, toBinary } from '@bufbuild/protobuf';
import { Server, ServerCredentials, type ServerUnaryCall, type sendUnaryData } from '@grpc/grpc-js';
import { type GetDevicesRequest, GetDevicesRequestSchema, GetDevicesResponseSchema } from '@keytrail/contracts';
import type { Statement } from '@keytrail/storage';
import pg from 'pg';
import { getDevices } from '../../services/identity-keys/src/rpc/get-devices.ts';

/**
 * What GetDevices costs without Keytrail's chain: grpc-js, `pg` and the handler alone, over the same database with as many connections. No
 * authentication, validation, limits, deadline, telemetry or trailers, and everybody may know everybody.
 */
const pool = new pg.Pool({
  connectionString: process.env.KEYTRAIL_DATABASE_URL,
  max: Number(process.env.KEYTRAIL_DATABASE_CONNECTIONS),
  keepAlive: true,
});
pool.on('error', () => {});
pg.types.setTypeParser(pg.types.builtins.INT8, BigInt);
const query = async ({ name, text }: Statement, values: unknown[]) => (await pool.query({ name, text, values })).rows;
const db = { query, pipelined: { query } };
const sharing = {
  knownTo: async (_: unknown, userIds: readonly string[]) => new Set(userIds),
  rememberedFor: (_: unknown, userIds: readonly string[]) => new Set(userIds),
};
const rpc = getDevices({ db, sharing, maxDevicesPerAnswer: 2_000 } as unknown as Parameters<typeof getDevices>[0]);
const handle = rpc.handle as unknown as (
  request: GetDevicesRequest,
  call: object,
) => Promise<MessageInitShape<typeof GetDevicesResponseSchema>>;
const call = { caller: { kind: 'service', service: 'bench' } };

function answer({ request }: ServerUnaryCall<GetDevicesRequest, Buffer>, respond: sendUnaryData<Buffer>): void {
  handle(request, call).then(
    (message) => {
      const bytes = toBinary(GetDevicesResponseSchema, create(GetDevicesResponseSchema, message));
      respond(null, Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength));
    },
    (error: Error) => respond({ code: 13, details: error.message }),
  );
}

const server = new Server();
server.addService(
  {
    GetDevices: {
      path: '/keytrail.identitykeys.v1.IdentityKeysService/GetDevices',
      requestStream: false,
      responseStream: false,
      requestSerialize: (request: Buffer) => request,
      requestDeserialize: (bytes: Buffer) => fromBinary(GetDevicesRequestSchema, bytes),
      responseSerialize: (response: Buffer) => response,
      responseDeserialize: (bytes: Buffer) => bytes,
    },
  },
  { GetDevices: answer },
);
const grpcPort = await new Promise<number>((resolve, reject) =>
  server.bindAsync('127.0.0.1:0', ServerCredentials.createInsecure(), (error, port) =>
    error ? reject(error) : resolve(port),
  ),
);
process.stdout.write(`${JSON.stringify({ event: 'listening', grpcPort })}\n`);
process.on('SIGTERM', () => process.exit());
