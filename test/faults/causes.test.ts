import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { createClient } from '@connectrpc/connect';
import { operatorScope } from '@keytrail/auth';
import { KeyMissError, type KeytrailClient } from '@keytrail/client';
import {
  type ExplainKeyResponse,
  PresenceOperatorService,
  PresenceService,
  SessionOperatorService,
} from '@keytrail/contracts';
import { createGrpcTransport, type GrpcTransport } from '@keytrail/rpc';
import { migrationNames } from '@keytrail/storage';
import { Redis } from 'ioredis';
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { run } from '../../packages/cli/src/program.ts';
import { someone, startWorld, type World } from '../e2e/world.ts';
import { makeRelease, type Release } from './releases.ts';

/**
 * The five suspected causes of the incident that this system exists for, each made for real, and each named first by ExplainKey. What refuses them while the
 * constraints stand is tested by services/session/test/straight-sql.test.ts and storing.test.ts, and by services/conversation/test/constraints.test.ts;
 * here the constraints are dropped in databases of this test's own.
 */
let world: World;
let sql: pg.Pool;
let redis: Redis;
let oldRelease: Release | undefined;
const transports: GrpcTransport[] = [];

beforeAll(async () => {
  world = await startWorld({
    name: 'test-causes',
    // FLUSHALL is for nobody else's Redis.
    own: true,
    replicas: { session: 2, presence: 2 },
    env: {
      KEYTRAIL_GATEWAY_LEASE_MS: '12000',
      KEYTRAIL_GATEWAY_RENEW_MS: '4000',
      KEYTRAIL_KEY_REQUEST_OFFER_MS: '1000',
      KEYTRAIL_KEY_REQUEST_WAIT_MS: '500',
    },
  });
  sql = new pg.Pool({ connectionString: world.constellation.databaseUrls.session, max: 1 });
  redis = new Redis(world.constellation.redis.url);
}, 120_000);
afterAll(async () => {
  for (const open of transports) open.close();
  await sql?.end();
  redis?.disconnect();
  await world?.[Symbol.asyncDispose]();
  oldRelease?.remove();
});

const operatorToken = () =>
  world.constellation.issuer.token({ userId: 'ops', deviceId: 'console', scopes: [operatorScope] });

function asOperator(target: string): GrpcTransport {
  const transport = createGrpcTransport({ target, authorization: async () => `Bearer ${await operatorToken()}` });
  transports.push(transport);
  return transport;
}

/** The first replica of session is always of this build. */
const currentSession = () => world.constellation.of('session')[0]?.grpcTarget ?? '';

interface Chat {
  readonly alice: KeytrailClient;
  readonly bob: KeytrailClient;
  readonly conversationId: string;
  readonly sessionId: string;
}

/** Alice's phone made a conversation with Bob; nobody is attached. */
async function chat(): Promise<Chat> {
  const [alice, bob] = [world.device(someone('alice'), 'phone'), world.device(someone('bob'), 'phone')];
  await alice.register();
  await bob.register();
  return { alice, bob, ...(await alice.createConversation({ kind: 'group', members: [bob.user] })) };
}

function explain({ conversationId, sessionId }: Chat, reader: KeytrailClient): Promise<ExplainKeyResponse> {
  const operator = createClient(SessionOperatorService, asOperator(currentSession()));
  return operator.explainKey({ conversationId, sessionId, userId: reader.user, deviceId: reader.device });
}

/** With what the database refuses such rows by taken away. */
async function damage(statement: string, chat: Chat, more: readonly string[] = []): Promise<number> {
  await sql.query('ALTER TABLE sessions DROP CONSTRAINT IF EXISTS sessions_native_is_complete');
  await sql.query('ALTER TABLE sessions DISABLE TRIGGER sessions_immutable');
  await sql.query('ALTER TABLE envelopes DISABLE TRIGGER session_keeps_its_envelopes');
  try {
    return (await sql.query(statement, [chat.conversationId, ...more])).rowCount ?? 0;
  } finally {
    await sql.query('ALTER TABLE sessions ENABLE TRIGGER sessions_immutable');
    await sql.query('ALTER TABLE envelopes ENABLE TRIGGER session_keeps_its_envelopes');
  }
}

async function missOf(reader: KeytrailClient, { conversationId, sessionId }: Chat): Promise<KeyMissError> {
  const error = await reader
    .openSession(conversationId, sessionId, { recover: false })
    .catch((thrown: unknown) => thrown);
  if (error instanceof KeyMissError) return error;
  throw new Error('it was no miss', { cause: error });
}

const first = ({ findings }: ExplainKeyResponse) => findings[0]?.code;

describe('what the database refuses', () => {
  test('while its constraints stand: a session without its keys, and envelopes taken away', async () => {
    const made = await chat();
    const refused = async (text: string) =>
      sql.query(text, [made.conversationId]).then(
        () => 'nothing',
        (error: { constraint?: string }) => error.constraint,
      );
    expect(await refused('UPDATE sessions SET initiator_ephemeral_key = NULL WHERE conversation_id = $1')).toBe(
      'sessions_immutable',
    );
    expect(await refused('UPDATE sessions SET initiator_identity_key = NULL WHERE conversation_id = $1')).toBe(
      'sessions_immutable',
    );
    expect(await refused('DELETE FROM envelopes WHERE conversation_id = $1')).toBe('session_is_whole');
  });
});

describe('the cause that is named first', () => {
  test('of a row without its ephemeral key (H2), from the trace id of the refusal alone', async () => {
    const made = await chat();
    const updated = await damage('UPDATE sessions SET initiator_ephemeral_key = NULL WHERE conversation_id = $1', made);
    expect(updated).toBe(1);
    const miss = await missOf(made.bob, made);
    expect(miss.cause).toBe('INITIATOR_EPHEMERAL_MISSING');
    expect(first(await explain(made, made.bob))).toBe('INITIATOR_EPHEMERAL_MISSING');

    const environment = {
      KEYTRAIL_SESSION_TARGET: currentSession(),
      KEYTRAIL_IDENTITY_KEYS_TARGET: world.constellation.grpcTarget('identity-keys'),
      KEYTRAIL_OPERATOR_TOKEN: await operatorToken(),
      KEYTRAIL_TRACE_BACKEND: world.constellation.traces.url,
    };
    const keytrail = async (...args: string[]) => {
      const ran = { out: '', err: '' };
      const code = await run(args, {
        environment,
        out(text) {
          ran.out += text;
        },
        say(text) {
          ran.err += text;
        },
      });
      return { code, ...ran };
    };
    // Right after the refusal: spans are sent in batches, and it waits for them.
    const ran = await keytrail('explain', '--trace', miss.traceId ?? '');
    expect(ran).toMatchObject({ code: 0 });
    expect(ran.out).toMatch(
      new RegExp(`^${made.bob.user}/phone cannot read this session: INITIATOR_EPHEMERAL_MISSING\n`),
    );
    expect(ran.out).toContain('session_stored');
    expect(ran.out).toContain('docs/reasons/initiator-ephemeral-missing.md');
    const device = `${made.bob.user}/${made.bob.device}`;
    const byIds = ['--conversation', made.conversationId, '--session', made.sessionId, '--device', device];
    for (const asked of [['--trace', miss.traceId ?? ''], byIds]) {
      const { readable, findings } = JSON.parse((await keytrail('explain', ...asked, '--json')).out);
      expect(readable).toBe(false);
      expect(findings[0]).toMatchObject({ code: 'INITIATOR_EPHEMERAL_MISSING', explainsMiss: true });
    }
    const ofUser = ['explain', '--conversation', made.conversationId, '--user', made.bob.user];
    const all = await keytrail(...ofUser);
    expect(all).toMatchObject({ code: 0, err: expect.stringMatching(/^1 of 1 device of /) });
    expect(all.out).toMatch(/\/phone +[0-9a-f]{16} +NO +INITIATOR_EPHEMERAL_MISSING +1 +/);
    const { explanations } = JSON.parse((await keytrail(...ofUser, '--json')).out);
    expect(explanations).toMatchObject([{ readable: false, device: { userId: made.bob.user, deviceId: 'phone' } }]);
  });

  test("of a row without its initiator's identity key (H3)", async () => {
    const made = await chat();
    await damage('UPDATE sessions SET initiator_identity_key = NULL WHERE conversation_id = $1', made);
    expect((await missOf(made.bob, made)).cause).toBe('INITIATOR_IDENTITY_MISSING');
    const explained = await explain(made, made.bob);
    expect(first(explained)).toBe('INITIATOR_IDENTITY_MISSING');
    expect(explained).toMatchObject({ readable: false, notAsked: [], session: { identityKeyPresent: false } });
  });

  test('of a conversation whose session, or part of it, is not there (H4)', async () => {
    const gone = await chat();
    await damage('DELETE FROM sessions WHERE conversation_id = $1', gone);
    expect((await missOf(gone.bob, gone)).cause).toBe('SESSION_UNKNOWN');
    expect(first(await explain(gone, gone.bob))).toBe('CONVERSATION_WITHOUT_SESSION');

    const part = await chat();
    await damage('DELETE FROM envelopes WHERE conversation_id = $1 AND user_id = $2', part, [part.bob.user]);
    expect((await missOf(part.bob, part)).cause).toBe('ENVELOPE_MISSING');
    const explained = await explain(part, part.bob);
    expect(first(explained)).toBe('ENVELOPES_FEWER_THAN_EXPECTED');
    expect(explained.findings[0]?.evidence).toMatchObject({ envelopes_expected: '2', envelopes_present: '1' });
  });

  test('of a session that an old build wrote which runs beside the new one (H1)', { timeout: 180_000 }, async () => {
    const store = 'services/session/src/store/sessions.ts';
    const takenOut = '20261125020000_writer_schema';
    oldRelease = makeRelease({
      name: 'before-writer-schema',
      edits: [
        { file: store, find: 'created_traceparent, writer_schema)', replace: 'created_traceparent)' },
        { file: store, find: '$20, $21, $22)', replace: '$20, $21)' },
        { file: store, find: '    traceparent,\n    writerSchema,\n  ]);', replace: '    traceparent,\n  ]);' },
        // As in the incident, it does not store the ephemeral key.
        {
          file: store,
          find: 'header.initiatorSigningKey,\n    header.initiatorEphemeralKey,',
          replace: 'header.initiatorSigningKey,\n    null,',
        },
      ],
    });
    // It knows none of the migrations from there on, as a build of that time. Of the code only what writes this column is taken out: that of later ones
    // stays, and works, as the database has them. So it is a build that is old in what it knows and in what it writes of a session, and in nothing else.
    const migrations = oldRelease.migrationsOf('session');
    for (const name of migrationNames(migrations))
      if (name >= takenOut) rmSync(join(migrations, name), { recursive: true });
    await sql.query('ALTER TABLE sessions DROP CONSTRAINT IF EXISTS sessions_native_is_complete');
    const buildOf = async ({ conversationId }: Chat) =>
      (await sql.query('SELECT writer_build FROM sessions WHERE conversation_id = $1', [conversationId])).rows[0]
        ?.writer_build;
    const current: string = await buildOf(await chat());
    const old = world.constellation.of('session')[1];
    await old?.process.restart({ cwd: oldRelease.folder });
    try {
      // Calls go to both by turns.
      let made = await chat();
      for (let tries = 0; (await buildOf(made)) === current && tries < 20; tries += 1) made = await chat();
      const build = await buildOf(made);
      expect(build).not.toBe(current);

      const explained = await explain(made, made.bob);
      expect(first(explained)).toBe('WRITTEN_BY_OLD_BUILD');
      expect(explained.findings[0]).toMatchObject({
        explainsMiss: true,
        evidence: { writer_build: build, running_build: current, left_out: 'ephemeral key' },
      });
      expect(explained.findings[1]?.code).toBe('INITIATOR_EPHEMERAL_MISSING');
      const stored = explained.timeline.find(({ event }) => event === 'session_stored');
      expect(stored).toMatchObject({ writerBuild: build, traceId: expect.stringMatching(/^[0-9a-f]{32}$/) });
    } finally {
      await old?.process.restart({ cwd: process.cwd() });
    }
  });
});

describe('presence that lost who is attached (H5) is named first', () => {
  /** Alice's phone attached by a stream that does not come back by itself; Bob's tablet came after the session. */
  async function waiting() {
    const made = await chat();
    const stream = createClient(PresenceService, world.transportsOf(made.alice.user, 'phone').presence).attach({
      attachCounter: 1n,
    });
    const messages = stream[Symbol.asyncIterator]();
    await messages.next();
    const ended = (async () => {
      for (;;) if ((await messages.next()).done) return;
    })().catch(() => {});
    const tablet = await world.further(made.bob, made.bob.user, 'tablet');
    return { ...made, tablet, ended };
  }

  const presenceOf = (target: string) => createClient(PresenceOperatorService, asOperator(target));
  async function homeOf(user: string): Promise<string | undefined> {
    const { devices } = await presenceOf(world.constellation.grpcTarget('presence')).findAttached({ userIds: [user] });
    return devices[0]?.gatewayId;
  }
  const untilNamed = (made: Chat & { readonly tablet: KeytrailClient }) =>
    vi.waitFor(
      async () => {
        const explained = await explain(made, made.tablet);
        expect(first(explained)).toBe('PRESENCE_LOST');
        return explained;
      },
      { timeout: 60_000, interval: 200 },
    );

  test('after FLUSHALL, until its gateways have written their entries anew', { timeout: 120_000 }, async () => {
    const made = await waiting();
    const gateway = (await homeOf(made.alice.user)) ?? '';
    // Right after a renewal, so that the next one does not heal it before anybody looked.
    const leaseEnd = () => redis.zscore('keytrail:gateways', gateway);
    const renewed = await leaseEnd();
    expect(renewed).not.toBeNull();
    while ((await leaseEnd()) === renewed);
    await redis.flushall();
    const { state } = await made.tablet.requestKey(made.conversationId, made.sessionId);
    expect(state).toBe('WAITING_FOR_HOLDER');
    const explained = await explain(made, made.tablet);
    expect(first(explained)).toBe('PRESENCE_LOST');
    expect(explained.findings[0]?.evidence).toMatchObject({ store_reachable: 'true', holders_online: '0' });
    expect(explained.findings.map(({ code }) => code)).toContain('DEVICE_ADDED_AFTER_SESSION');
    // Without anybody's doing, the request goes on.
    await vi.waitFor(async () => expect(first(await explain(made, made.tablet))).toBe('DEVICE_ADDED_AFTER_SESSION'), {
      timeout: 30_000,
      interval: 100,
    });
  });

  test('after its gateway was killed, and gone once the holder attaches elsewhere', { timeout: 120_000 }, async () => {
    const made = await waiting();
    const gateway = await homeOf(made.alice.user);
    const replicas = world.constellation.of('presence');
    const own = await Promise.all(
      replicas.map(async (replica) =>
        (await presenceOf(replica.grpcTarget).describeGateways({})).gateways.find(({ isOwn }) => isOwn),
      ),
    );
    const home = replicas[own.findIndex((view) => view?.gatewayId === gateway)];
    await home?.process.kill('SIGKILL');
    await made.ended;
    await made.tablet.requestKey(made.conversationId, made.sessionId);
    const explained = await untilNamed(made);
    expect(explained.findings[0]?.summary).toContain('attached to a gateway that died');
    await home?.process.restart();
    await made.alice.attach();
    await made.tablet.attach();
    await made.tablet.openSession(made.conversationId, made.sessionId);
    expect(first(await explain(made, made.tablet))).toBe('READABLE');
  });
});

test('a key that is there is told as that, with everything that happened', async () => {
  const made = await chat();
  const explained = await explain(made, made.bob);
  expect(explained.findings.map(({ code }) => code)).toEqual(['READABLE']);
  expect(explained.notAsked).toEqual([]);
  expect(explained.timeline.map(({ event }) => event)).toEqual(
    expect.arrayContaining(['device_registered', 'session_stored', 'epoch_committed', 'conversation_created']),
  );
});

test('a reader who never was a member is found by the pseudonyms that traces show', async () => {
  const [made, another] = [await chat(), await chat()];
  const { userPseudonym, devicePseudonym } = await explain(another, another.bob);
  const operator = createClient(SessionOperatorService, asOperator(currentSession()));
  const { conversationId, sessionId } = made;
  const explained = await operator.explainKey({ conversationId, sessionId, userPseudonym, devicePseudonym });
  expect(explained.device).toMatchObject({ userId: another.bob.user, deviceId: another.bob.device });
  expect(explained.findings[0]).toMatchObject({ code: 'NEVER_A_MEMBER', evidence: { device_registered: 'true' } });
});
