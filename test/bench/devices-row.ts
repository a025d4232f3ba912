import { join } from 'node:path';
import { create, toBinary } from '@bufbuild/protobuf';
import { createClient } from '@connectrpc/connect';
import { GetDevicesRequestSchema, GetDevicesResponseSchema, IdentityKeysService } from '@keytrail/contracts';
import { startProcess } from '@keytrail/local';
import { createGrpcTransport } from '@keytrail/rpc';
import pg from 'pg';
import type { Bench } from './bench.ts';
import { type CallPlan, loadByCalls } from './call-load.ts';
import type { Round } from './load.ts';
import { type Measured, median, rounded, rowOf, WrongAnswers } from './measurement.ts';
import { seedConversation } from './seed-conversation.ts';
import { devicesPerUser, seedCallers, seedDevices } from './seed-devices.ts';

const name = 'identity.devices.query';
const callers = 40;
/** So few that asking conversation anew for each pair, every thirty seconds, is a hundredth of the calls. */
const users = 25;
const rounds = 5;
const seconds = 3;

/** The device list of one user of three devices, asked for by forty devices that share a conversation with all of them. */
export async function measureDevicesQuery(bench: Bench): Promise<Measured> {
  const { constellation, progress } = bench;
  const databaseUrl = constellation.databaseUrls['identity-keys'];
  const [replica] = constellation.of('identity-keys');
  if (!replica) throw new Error('there is no identity-keys service');
  progress(`${name}: seeding devices and a conversation`);
  const asking = await withClient(databaseUrl, (sql) => seedCallers(sql, 'asker', callers));
  const seeded = await withClient(databaseUrl, (sql) => seedDevices(sql, 'listed', users * devicesPerUser, 0));
  const asked = [...new Set(seeded.map(({ userId }) => userId))];
  const members = [...asking.map(({ userId }) => userId), ...asked];
  await withClient(constellation.databaseUrls.conversation, (sql) => seedConversation(sql, members));
  const tokens = await Promise.all(asking.map((caller) => constellation.issuer.token(caller)));

  await using bare = await startProcess({
    name: 'bare devices server',
    args: ['test/bench/bare-devices-server.ts'],
    logFile: join(bench.folder, 'bare-devices-server.log'),
    env: { KEYTRAIL_DATABASE_URL: databaseUrl, KEYTRAIL_DATABASE_CONNECTIONS: String(bench.databaseConnections) },
  });
  const { grpcPort } = await bare.waitForLine((line) => line.event === 'listening');
  const targets = {
    ours: { address: replica.grpcTarget, pid: replica.process.pid },
    bare: { address: `127.0.0.1:${grpcPort}`, pid: bare.pid },
  };
  const bytes = await sameBytes([targets.ours.address, targets.bare.address], tokens[0] as string, asked[0] as string);
  const plan: Omit<CallPlan, 'address'> = {
    path: `/${IdentityKeysService.typeName}/GetDevices`,
    callers: tokens.map((token) => ({ headers: { authorization: `Bearer ${token}` } })),
    requests: asked.map((userId) =>
      Buffer.from(toBinary(GetDevicesRequestSchema, create(GetDevicesRequestSchema, { userIds: [userId] }))).toString(
        'base64',
      ),
    ),
    // Names of users differ in length; a list without its devices is far from it.
    answerBytes: { least: bytes - 16, most: bytes + 16 },
    seconds,
  };
  const measure = async (which: 'ours' | 'bare') => {
    const { address, pid } = targets[which];
    const { answered: _, ...round } = await loadByCalls(pid, { ...plan, address }, join(bench.folder, 'load'));
    return round;
  };

  progress(`${name}: warming up`);
  await remember(replica.grpcTarget, tokens, asked);
  await measure('bare');
  await measure('ours');
  const found: { bare: Round[]; ours: Round[] } = { bare: [], ours: [] };
  for (let n = 1; n <= rounds; n += 1) {
    found.bare.push(await measure('bare'));
    found.ours.push(await measure('ours'));
    const [bareSpeed, ourSpeed] = [found.bare, found.ours].map((each) =>
      Math.round(each.at(-1)?.requestsPerSecond ?? 0),
    );
    progress(`${name}: round ${n} of ${rounds}, bare ${bareSpeed}, ours ${ourSpeed} requests/s`);
  }
  const perSecond = (each: readonly Round[]) => median(each.map((round) => round.requestsPerSecond));
  const processorTime = (each: readonly Round[]) => median(each.map((round) => round.serverMicrosecondsEach));
  return {
    rows: [rowOf(name, 'requests/s', perSecond(found.ours), perSecond(found.bare))],
    details: {
      [name]: {
        ratioByProcessorTime: rounded(processorTime(found.bare) / processorTime(found.ours)),
        callers,
        users,
        devicesPerUser,
        roundSeconds: seconds,
        bare: found.bare.map(inShort),
        ours: found.ours.map(inShort),
      },
    },
  };
}

/** Each caller asks for all users once: from then on the service remembers who shares a conversation, until it asks conversation anew. */
async function remember(target: string, tokens: readonly string[], userIds: string[]): Promise<void> {
  for (const token of tokens) {
    const transport = createGrpcTransport({ target, authorization: () => `Bearer ${token}` });
    try {
      await createClient(IdentityKeysService, transport).getDevices({ userIds });
    } finally {
      transport.close();
    }
  }
}

async function withClient<T>(connectionString: string, work: (sql: pg.Client) => Promise<T>): Promise<T> {
  const sql = new pg.Client({ connectionString });
  await sql.connect();
  return work(sql).finally(() => sql.end());
}

/** The comparison is fair only if both answer the same; its size. */
async function sameBytes(addresses: readonly string[], token: string, userId: string): Promise<number> {
  const answers = await Promise.all(
    addresses.map(async (target) => {
      const transport = createGrpcTransport({ target, authorization: () => `Bearer ${token}` });
      try {
        const answer = await createClient(IdentityKeysService, transport).getDevices({ userIds: [userId] });
        if (answer.deviceLists[0]?.devices.length !== devicesPerUser)
          throw new WrongAnswers(`a list of ${answer.deviceLists[0]?.devices.length} devices`);
        return Buffer.from(toBinary(GetDevicesResponseSchema, answer));
      } finally {
        transport.close();
      }
    }),
  );
  if (!answers[0]?.equals(answers[1] as Buffer))
    throw new WrongAnswers('the bare server and the service answer differently');
  return answers[0].byteLength;
}

function inShort(round: Round): Record<string, number> {
  return Object.fromEntries(Object.entries(round).map(([key, value]) => [key, rounded(value)]));
}
