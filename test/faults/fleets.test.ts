import { createClient } from '@connectrpc/connect';
import { run } from '@keytrail/cli';
import { DiagnosticsService, SessionService } from '@keytrail/contracts';
import { consumers, deviceAttached } from '@keytrail/events';
import { type ServiceReplica, serviceNames } from '@keytrail/local/constellation';
import { createGrpcTransport, readRefusal } from '@keytrail/rpc';
import { migrateDatabase } from '@keytrail/storage';
import { jetstreamManager } from '@nats-io/jetstream';
import { connect } from '@nats-io/transport-node';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { startWorld, type World } from '../e2e/world.ts';
import { type Chat, startChats } from './chats.ts';
import { rowsOf } from './delivery.ts';
import { makeRelease, type Release } from './releases.ts';

const expanding = '20990101000000_notes';
const contracting = '20990102000000_notes_needed';
const expand = {
  service: 'session',
  name: expanding,
  sql: `ALTER TABLE sessions ADD COLUMN note text NOT NULL DEFAULT 'none';`,
} as const;
const contract = {
  service: 'session',
  name: contracting,
  sql: `ALTER TABLE sessions ADD CONSTRAINT sessions_have_notes CHECK (note <> '') NOT VALID;
UPDATE schema_floor SET migration = '${contracting}';`,
} as const;

let world: World;
/** N, the expanding N+1, and the contracting N+2. */
let releases: readonly [Release, Release, Release];
const opened: { close(): void }[] = [];

beforeAll(async () => {
  releases = [
    makeRelease({ name: 'fleets-now' }),
    makeRelease({ name: 'fleets-next', migrations: [expand] }),
    makeRelease({ name: 'fleets-later', migrations: [expand, contract] }),
  ];
  const [now] = releases;
  world = await startWorld({
    name: 'test-fleets',
    migrationsOf: now.folder,
    releases: Object.fromEntries(serviceNames.map((service) => [service, now.folder])),
    replicas: { session: 2 },
    env: { KEYTRAIL_KEY_REQUEST_WAIT_MS: '500', KEYTRAIL_KEY_REQUEST_SWEEP_MS: '50' },
  });
});
afterAll(async () => {
  for (const each of opened) each.close();
  await world?.[Symbol.asyncDispose]();
  for (const release of releases ?? []) release.remove();
});

function session(place: 0 | 1): ServiceReplica {
  return world.constellation.of('session')[place] as ServiceReplica;
}

async function readyz({ webUrl }: ServiceReplica): Promise<{ ready: boolean; why?: string }> {
  return (await (await fetch(`${webUrl}/readyz`)).json()) as { ready: boolean; why?: string };
}

async function buildOf({ webUrl }: ServiceReplica): Promise<string> {
  return ((await (await fetch(`${webUrl}/healthz`)).json()) as { build: string }).build;
}

async function operator(): Promise<string> {
  return world.constellation.issuer.token({ userId: 'ops', deviceId: 'console', scopes: ['keytrail:operator'] });
}

async function describeProcess({ grpcTarget }: ServiceReplica) {
  const token = await operator();
  const transport = createGrpcTransport({ target: grpcTarget, authorization: () => `Bearer ${token}` });
  opened.push(transport);
  return createClient(DiagnosticsService, transport).describeProcess({});
}

/** What the command of a release says of the database of session. */
async function migrateStatus(release: Release): Promise<{ state: string; serves: boolean; unknown: string[] }> {
  let out = '';
  const { run: runOfRelease } = (await import(`${release.folder}/packages/cli/src/program.ts`)) as { run: typeof run };
  await runOfRelease(['migrate', 'status', '--service', 'session', '--json'], {
    environment: { KEYTRAIL_DATABASE_URL_SESSION: world.constellation.databaseUrls.session },
    out: (text) => {
      out += text;
    },
    say: () => {},
  });
  return (JSON.parse(out) as { databases: [{ state: string; serves: boolean; unknown: string[] }] }).databases[0];
}

/** The statuses of checks by the doctor of this tree, by code; `seen`: the only process of session that it is told of. */
async function doctor(codes: string, seen?: ServiceReplica): Promise<Record<string, string>> {
  const { constellation } = world;
  let out = '';
  const targets = serviceNames.map((service) => [
    `KEYTRAIL_${service.toUpperCase().replace('-', '_')}_TARGET`,
    service === 'session' && seen ? seen.grpcTarget : constellation.grpcTarget(service),
  ]);
  await run(['doctor', '-o', 'json', '--only', codes], {
    environment: { ...Object.fromEntries(targets), KEYTRAIL_OPERATOR_TOKEN: await operator() },
    out: (text) => {
      out += text;
    },
    say: () => {},
  });
  const { checks } = JSON.parse(out) as { checks: { code: string; status: string }[] };
  return Object.fromEntries(checks.map(({ code, status }) => [code, status]));
}

function migrateTo(release: Release): Promise<string[]> {
  return migrateDatabase({
    url: world.constellation.databaseUrls.session,
    migrations: release.migrationsOf('session'),
  });
}

/** The rows of every table of session, as one text for each: whatever the service or its jobs write shows. */
async function contents(): Promise<Record<string, string>> {
  const { constellation } = world;
  const tables = await rowsOf<{ name: string }>(
    constellation,
    'session',
    `SELECT table_name AS name FROM information_schema.tables WHERE table_schema = 'public' AND table_type = 'BASE TABLE'`,
  );
  const read = tables.map(async ({ name }) => {
    const all = `SELECT coalesce(string_agg(t::text, E'\\n' ORDER BY t::text), '') AS all FROM ${name} t`;
    return [name, (await rowsOf<{ all: string }>(constellation, 'session', all))[0]?.all ?? ''] as const;
  });
  return Object.fromEntries(await Promise.all(read));
}

/**
 * Waits until the event of a device that attached is there for session's consumer, handed to nobody and asked for by nobody; and until the open
 * request has been due for so long that the sweep would have looked at it twenty times.
 */
async function workIsLeftUndone(): Promise<void> {
  const { constellation } = world;
  const connection = await connect({ servers: constellation.nats.url });
  try {
    const manager = await jetstreamManager(connection);
    await vi.waitFor(
      async () => {
        const { num_pending, num_ack_pending, num_waiting } = await manager.consumers.info(
          deviceAttached.stream,
          consumers.sessionPresence.name,
        );
        expect({ num_pending, num_ack_pending, num_waiting }).toEqual({
          num_pending: 1,
          num_ack_pending: 0,
          num_waiting: 0,
        });
        const overdue = `SELECT now() - next_attempt_at > interval '1 second' AS overdue FROM key_requests`;
        expect(await rowsOf(constellation, 'session', overdue)).toEqual([{ overdue: true }]);
      },
      { timeout: 20_000, interval: 50 },
    );
  } finally {
    await connection.close();
  }
}

async function refusalOf(call: Promise<unknown>) {
  return readRefusal(
    await call.then(
      () => new Error('it was answered'),
      (error: unknown) => error,
    ),
  );
}

function sessionOver(replica: ServiceReplica, token: string) {
  const transport = createGrpcTransport({
    target: replica.grpcTarget,
    authorization: () => `Bearer ${token}`,
    retry: { retries: 0 },
  });
  opened.push(transport);
  return createClient(SessionService, transport);
}

describe('a fleet whose session service is on its way to the next release', () => {
  let builds: readonly [string, string];
  let waiting: Chat;

  test('within the floor both releases serve side by side, the older one says so, and rows tell who wrote them', async () => {
    const [now, next] = releases;
    expect(await migrateTo(next)).toEqual([expanding]);
    await session(1).process.restart({ cwd: next.folder });
    builds = [await buildOf(session(0)), await buildOf(session(1))];
    expect(builds[0]).not.toBe(builds[1]);
    await vi.waitFor(async () => expect((await readyz(session(0))).why).toContain(expanding), 10_000);
    expect(await readyz(session(0))).toMatchObject({ ready: true });
    expect(await readyz(session(1))).toEqual({ ready: true });

    const written = async () =>
      (
        await rowsOf<{ writer_build: string }>(
          world.constellation,
          'session',
          'SELECT DISTINCT writer_build FROM sessions',
        )
      )
        .map(({ writer_build }) => writer_build)
        .sort();
    for (let chats = 0; chats < 20 && (await written()).length < 2; chats += 1) {
      const [chat] = await startChats(world, 1);
      if (chat) waiting = chat;
    }
    expect(await written()).toEqual([...builds].sort());

    const described = await describeProcess(session(0));
    expect(described).toMatchObject({
      ready: true,
      schema: { state: 'ahead', unknown: [expanding], floor: '', newestInDatabase: expanding },
      process: { service: 'session', writerBuild: builds[0], supervisor: 'launcher' },
    });
    const conversation = await describeProcess(world.constellation.of('conversation')[0] as ServiceReplica);
    const peers = conversation.peers.filter(({ service }) => service === 'session');
    expect(peers.map(({ writerBuild }) => writerBuild).sort()).toEqual([...builds].sort());
    expect(new Set(peers.map(({ contractDigest }) => contractDigest))).toEqual(
      new Set([described.process?.contractDigest]),
    );
    expect(await migrateStatus(now)).toMatchObject({ state: 'ahead', serves: true, unknown: [expanding] });
    expect(await doctor('MIGRATIONS,FLEET_MIXED')).toEqual({ MIGRATIONS: 'warn', FLEET_MIXED: 'warn' });
    // The older one as one that was forgotten: it writes, and nobody named it. So soon after the start of the other it may be one that ends.
    expect(await doctor('OLD_BUILD_WRITES', session(1))).toEqual({ OLD_BUILD_WRITES: 'warn' });
  }, 120_000);

  test('beyond the floor the running older release stops to serve, and a rolled-back one starts, says why, and writes nothing', async () => {
    const [now, , later] = releases;
    const { alice, bob, tablet, bobId, conversationId, sessionId } = waiting;
    // Work for consumers, sweep and relay: a request that nobody can fulfil yet, due again and again.
    await Promise.all([alice.detach(), bob.detach()]);
    await tablet.requestKey(conversationId, sessionId);
    await migrateTo(later);
    await vi.waitFor(async () => expect((await readyz(session(0))).ready).toBe(false), { timeout: 20_000 });
    await session(1).process.restart({ cwd: now.folder });

    for (const replica of [session(0), session(1)]) {
      expect(await buildOf(replica)).toBe(builds[0]);
      const { ready, why } = await readyz(replica);
      expect({ ready, why }).toEqual({ ready: false, why: expect.stringContaining(contracting) });
      const described = await describeProcess(replica);
      expect(described).toMatchObject({ ready: false, schema: { state: 'ahead', floor: contracting } });
      expect(described.notReadyBecause).toContain(contracting);
    }
    expect(await migrateStatus(now)).toMatchObject({ state: 'ahead', serves: false });
    expect(await doctor('MIGRATIONS')).toEqual({ MIGRATIONS: 'fail' });

    const before = await contents();
    // A holder attaches, which a consumer of session would act on.
    await alice.attach();
    const token = await world.constellation.issuer.token({ userId: bobId, deviceId: 'tablet' });
    for (let again = 0; again < 10; again += 1)
      for (const replica of [session(0), session(1)]) {
        const asked = { conversationId, sessionId };
        const refused = await refusalOf(sessionOver(replica, token).getInitialSession(asked));
        expect(refused).toMatchObject({
          reason: 'BUILD_BEHIND',
          metadata: { floor: contracting, unknown: `${expanding}, ${contracting}` },
          retryAfterMs: 1000,
        });
        const web = await fetch(`${replica.webUrl}/${SessionService.typeName}/GetInitialSession`, {
          method: 'POST',
          headers: { 'content-type': 'application/json', authorization: `Bearer ${token}` },
          body: JSON.stringify(asked),
        });
        expect(web.status).toBe(503);
        expect(web.headers.get('keytrail-build')).toBe(builds[0]);
        expect(await web.text()).toContain('BUILD_BEHIND');
      }
    await workIsLeftUndone();
    expect(await contents()).toEqual(before);
  }, 120_000);

  test('rolling forward recovers: what waited goes on', async () => {
    const [, , later] = releases;
    await Promise.all([0, 1].map((place) => session(place as 0 | 1).process.restart({ cwd: later.folder })));
    await vi.waitFor(async () => expect(await readyz(session(0))).toEqual({ ready: true }), 10_000);
    // The holder is there since before.
    await vi.waitFor(
      async () =>
        expect(await rowsOf(world.constellation, 'session', 'SELECT state FROM key_requests')).toEqual([
          { state: 'FULFILLED' },
        ]),
      { timeout: 30_000 },
    );
    await startChats(world, 1);
    const written = 'SELECT count(*)::int AS rows FROM sessions WHERE writer_build = $1';
    expect(await rowsOf(world.constellation, 'session', written, [await buildOf(session(0))])).toEqual([{ rows: 1 }]);
    expect(await doctor('MIGRATIONS,OLD_BUILD_WRITES')).toEqual({ MIGRATIONS: 'ok', OLD_BUILD_WRITES: 'ok' });
  }, 120_000);
});
