import { createClient } from '@connectrpc/connect';
import type { KeytrailClient } from '@keytrail/client';
import { PresenceService } from '@keytrail/contracts';
import { startTraceStore, type TraceStore } from '@keytrail/traces';
import { jetstreamManager } from '@nats-io/jetstream';
import { headers } from '@nats-io/nats-core';
import { connect } from '@nats-io/transport-node';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { someone } from '../e2e/world.ts';
import { clockAhead, type DoctorWorld, startDoctorWorld } from './doctor-world.ts';
import { growContracts } from './releases.ts';

const leaseMs = 15_000;
const renewMs = 5_000;
/** All but what needs tokens of devices. */
const sound =
  'SERVICES_REACHABLE,BUILD_RUNNING,SOURCES_ON_DISK,FLEET_MIXED,CONTRACTS_AGREE,DATABASE,MIGRATIONS,NATS,REDIS,PRESENCE,LEASES,CONSUMERS,OUTBOX,TELEMETRY';

let doctors: DoctorWorld;
/** Whose gateway was killed. */
let silent: KeytrailClient | undefined;
/** In the place of the one that was stopped. */
let receiver: TraceStore | undefined;
beforeAll(async () => {
  doctors = await startDoctorWorld('doctor', {
    replicas: { session: 2, presence: 2 },
    env: {
      KEYTRAIL_GATEWAY_LEASE_MS: String(leaseMs),
      KEYTRAIL_GATEWAY_RENEW_MS: String(renewMs),
      KEYTRAIL_PRESENCE_SWEEP_MS: '3600000',
      KEYTRAIL_DATABASE_STATEMENT_TIMEOUT_MS: '2000',
    },
  });
  const { world } = doctors;
  await Promise.all([world.online(someone('alice'), 'phone'), world.online(someone('bob'), 'phone')]);
  await doctors.isOkAgain(sound);
}, 120_000);
afterAll(async () => {
  await doctors?.[Symbol.asyncDispose]();
  await receiver?.stop();
});

const constellation = () => doctors.world.constellation;

async function withJetStream<T>(
  work: (manager: Awaited<ReturnType<typeof jetstreamManager>>) => Promise<T>,
): Promise<T> {
  const connection = await connect({ servers: constellation().nats.url });
  try {
    return await work(await jetstreamManager(connection));
  } finally {
    await connection.close();
  }
}

describe('a fault is named, and gone when it is healed:', () => {
  test('NATS stopped, and what cannot be published meanwhile', async () => {
    await constellation().nats.halt?.();
    await doctors.names('NATS', 'fail', /NATS is away|does not answer/);
    await doctors.names('STREAMS', 'unknown', /NATS is away/);
    await doctors.past(
      'session',
      `INSERT INTO outbox (aggregate, partition, subject, payload, created_at)
       VALUES ('doctor', 0, 'keytrail.session.v1.nobody_listens', '', now() - interval '5 minutes')`,
    );
    await doctors.names('OUTBOX', 'fail', /1 events wait to be published, the oldest for 3\d\d s/);
    await constellation().nats.restart?.();
    await doctors.isOkAgain('NATS,OUTBOX');
  });

  test('a stream whose settings drifted', async () => {
    const change = (maxMessages: number) =>
      withJetStream((manager) => manager.streams.update('SESSION', { max_msgs: maxMessages }));
    await change(1_000);
    await doctors.names(
      'STREAMS',
      'fail',
      /NATS differs from the catalogue: stream SESSION: max_msgs is 1000, wanted -1/,
    );
    await change(-1);
    const { of } = await doctors.findings('STREAMS');
    expect(of('STREAMS').status).not.toBe('fail');
  });

  test('an event that no handler can take, while it comes again and again', async () => {
    const unreadable = headers();
    unreadable.set('Nats-Msg-Id', 'unreadable');
    await withJetStream((manager) =>
      manager
        .jetstream()
        .publish('keytrail.session.v1.key_request_due', new Uint8Array([255]), { headers: unreadable }),
    );
    // It is given up after 25 s, which a later test looks at.
    await doctors.comesToName('CONSUMERS', 'warn', /events come again and again: session-dispatcher of SESSION/);
  });

  test('a stream that was deleted is told as lost, also once a service has made it anew', async () => {
    await withJetStream((manager) => manager.streams.delete('PRESENCE'));
    await vi.waitFor(async () => {
      const { of } = await doctors.findings('STREAMS');
      expect(of('STREAMS')).toMatchObject({
        status: expect.stringMatching(/^(warn|fail)$/),
        summary: expect.stringMatching(/stream PRESENCE/),
      });
    }, 20_000);
  });

  test('PostgreSQL stopped', async () => {
    await constellation().postgres.halt?.();
    await doctors.names('DATABASE', 'fail', /cannot be reached/);
    await doctors.names('DATABASE', 'fail', /cannot be reached/, '--direct');
    await doctors.names('SESSION_ROWS', 'unknown', /could not be found out/);
    await constellation().postgres.restart?.();
    await doctors.isOkAgain('DATABASE,OUTBOX,SESSION_ROWS');
  });

  test('a database that takes no writes, as a managed one whose disk is full', async () => {
    const database = new URL(constellation().databaseUrls.conversation).pathname.slice(1);
    const readsOnly = (on: boolean) =>
      doctors.past(
        'session',
        `ALTER DATABASE "${database}" SET default_transaction_read_only = ${on}`,
        `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '${database}'`,
      );
    await readsOnly(true);
    await doctors.comesToName('DATABASE', 'fail', /^conversation at .*takes no writes/);
    await doctors.names('DATABASE', 'fail', /takes no writes/, '--direct');
    await readsOnly(false);
    await doctors.isOkAgain('DATABASE,OUTBOX');
  });

  test('Redis away', async () => {
    await constellation().redis.halt?.();
    await doctors.names('REDIS', 'fail', /Redis does not answer/);
    const { of } = await doctors.findings('REDIS');
    const kept = of('REDIS').places.filter(({ where }) => where.startsWith('identity-keys at '));
    expect(kept).toMatchObject([{ status: 'warn', evidence: { withoutRedis: 'open' } }]);
    await doctors.names('GHOSTS', 'unknown', /could not be found out/);
    expect((await doctors.findings('GHOSTS')).of('GHOSTS').hint).toBe('see REDIS, which it asks');
    await constellation().redis.restart?.();
    await doctors.isOkAgain('REDIS,PRESENCE,LEASES,GHOSTS');
  });

  test('Redis emptied: devices that are attached are offline for everybody (H5)', async () => {
    const { Redis } = await import('ioredis');
    const redis = new Redis(constellation().redis.url);
    try {
      // Between renewals: at the next one it heals by itself.
      const untilRenewal = async () => {
        const [seconds = 0, micros = 0] = (await redis.time()).map(Number);
        const scores = (await redis.zrange('keytrail:gateways', 0, '-1', 'WITHSCORES')).filter((_, place) => place % 2);
        return Math.min(...scores.map((end) => Number(end) - seconds * 1000 - micros / 1000 - (leaseMs - renewMs)));
      };
      while ((await untilRenewal()) < 2_000);
      await redis.flushall();
      const { of } = await doctors.findings('PRESENCE,LEASES');
      expect(of('PRESENCE')).toMatchObject({
        status: 'fail',
        summary: expect.stringMatching(/are offline for everybody else/),
      });
      expect(of('LEASES')).toMatchObject({ status: 'fail', summary: expect.stringMatching(/has no lease/) });
    } finally {
      redis.disconnect();
    }
    await doctors.isOkAgain('PRESENCE,LEASES');
  });

  test('a gateway that was killed (H5)', async () => {
    const user = someone('silent');
    silent = doctors.world.device(user, 'phone');
    await silent.register();
    // A stream that does not come back by itself: Redis keeps its entry.
    const stream = createClient(PresenceService, doctors.world.transportsOf(user, 'phone').presence).attach({
      attachCounter: 1n,
    });
    const messages = stream[Symbol.asyncIterator]();
    await messages.next();
    const ended = (async () => {
      for (;;) if ((await messages.next()).done) return;
    })().catch(() => {});
    const { of } = await doctors.findings('LEASES');
    const [home] = await gatewaysOf(user);
    const { where } = of('LEASES').places.find(({ evidence }) => evidence?.gateway === home) ?? {};
    const gateway = constellation()
      .of('presence')
      .find(({ grpcTarget }) => where === `presence at ${grpcTarget}`);
    await gateway?.process.kill('SIGKILL');
    await doctors.names('SERVICES_REACHABLE', 'fail', /presence at 127\.0\.0\.1:\d+: no connection \(ECONNREFUSED /);
    await ended;
    await gateway?.process.restart();
    await doctors.isOkAgain('SERVICES_REACHABLE,LEASES,PRESENCE');
  });

  test('a replica that stands still: the doctor does not hang, and says which', async () => {
    const [, frozen] = constellation().of('session');
    await frozen?.process.kill('SIGSTOP');
    try {
      const from = performance.now();
      const ran = await doctors.doctor(['-o', 'json', '--skip', 'REPRODUCTION']);
      // A call that is never answered takes the time that a call may take, once; the rest is not asked of it again.
      expect(performance.now() - from).toBeLessThan(30_000);
      expect(ran.code).toBe(1);
      const { checks } = JSON.parse(ran.out) as {
        checks: { code: string; status: string; places: { where: string; status: string }[] }[];
      };
      const of = (code: string) => checks.find((check) => check.code === code);
      expect(of('SERVICES_REACHABLE')?.places).toContainEqual(
        expect.objectContaining({ where: `session at ${frozen?.grpcTarget}`, status: 'fail' }),
      );
      expect(of('BUILD_RUNNING')?.status).toBe('unknown');
      // The other replica tells of the rows.
      expect(of('SESSION_ROWS')?.status).toBe('ok');
    } finally {
      await frozen?.process.kill('SIGCONT');
    }
    await doctors.isOkAgain('SERVICES_REACHABLE');
  });

  test('a service that is down: its rows are read by the doctor itself, and the SQL is shown', async () => {
    const sessions = constellation().of('session');
    await Promise.all(sessions.map(({ process }) => process.kill('SIGKILL')));
    const blind = await doctors.doctor(['--only', 'SESSION_ROWS']);
    expect(blind).toMatchObject({ code: 5, out: expect.stringMatching(/unknown +SESSION_ROWS/) });
    const seeing = await doctors.doctor(['--only', 'SESSION_ROWS,SERVICES_REACHABLE'], doctors.databaseUrls());
    expect(seeing.code).toBe(1);
    expect(seeing.out).toMatch(/ok +SESSION_ROWS/);
    expect(seeing.out).toMatch(/FROM sessions TABLESAMPLE/);
    await Promise.all(sessions.map(({ process }) => process.restart()));
    await doctors.isOkAgain('SERVICES_REACHABLE');
  });

  test('what the killed gateway left, once its lease is over, until the device attaches elsewhere (H5)', async () => {
    await doctors.comesToName('GHOSTS', 'warn', /1 of \d+ entries point to 1 gateways that are gone/);
    await silent?.attach();
    await doctors.isOkAgain('GHOSTS');
  });

  test('the event that no handler could take, once it was given up', async () => {
    await doctors.comesToName('DEAD_LETTERS', 'warn', /1 dead letters: session-dispatcher 1/);
    const listed = await doctors.keytrail(['--json', 'dead-letters', 'list', '--of', 'session']);
    const [letter] = JSON.parse(listed.out).deadLetters;
    const replayed = await doctors.keytrail(['dead-letters', 'replay', letter.deadLetterId, '--of', 'session']);
    expect(replayed).toMatchObject({ code: 1, err: expect.stringContaining('stays') });
    await doctors.past('session', 'DELETE FROM dead_letters');
    await doctors.isOkAgain('DEAD_LETTERS,CONSUMERS');
  });

  test('sources that were changed on disk, and then two builds, with two contracts', async () => {
    const [session] = constellation().of('session');
    const restore = growContracts(doctors.release);
    await doctors.comesToName('SOURCES_ON_DISK', 'warn', /the sources on disk have changed since they were loaded/);
    await doctors.isOkAgain('CONTRACTS_AGREE');
    await session?.process.restart();
    await doctors.names('FLEET_MIXED', 'warn', /2 builds run/);
    await doctors.names(
      'CONTRACTS_AGREE',
      'warn',
      /^2 contracts are served: [0-9a-f]{24} \(conversation, identity-keys, 2 presence, session\); [0-9a-f]{24} \(session\)$/,
    );
    restore();
    await session?.process.restart();
    await doctors.isOkAgain('SOURCES_ON_DISK,FLEET_MIXED,CONTRACTS_AGREE');
  });

  test('the clock of one process', async () => {
    const [, ahead] = constellation().of('session');
    await ahead?.process.restart({ env: clockAhead(doctors.release.folder, 180_000) });
    const { code, of } = await doctors.findings('CLOCKS');
    expect(code).toBe(1);
    expect(of('CLOCKS').places.filter(({ status }) => status !== 'ok')).toMatchObject([
      {
        where: `session at ${ahead?.grpcTarget}`,
        status: 'fail',
        summary: expect.stringMatching(/^the clock of the database is 1[78]\d{4} ms behind that of the process$/),
      },
      {
        where: 'fleet',
        status: 'fail',
        summary: expect.stringMatching(
          new RegExp(`^session at ${ahead?.grpcTarget} is 1[78]\\d{4} ms ahead of [a-z-]+ at 127\\.0\\.0\\.1:\\d+$`),
        ),
      },
    ]);
    await ahead?.process.restart({ env: { NODE_OPTIONS: '' } });
    await doctors.isOkAgain('CLOCKS');
  });

  test('traces that do not get to where operators read them, and a receiver that is away', async () => {
    const ask = async (KEYTRAIL_TRACE_BACKEND: string) =>
      doctors.doctor(['--only', 'TELEMETRY'], { KEYTRAIL_TRACE_BACKEND });
    expect(await ask(constellation().traces.url)).toMatchObject({
      code: 0,
      out: expect.stringMatching(/ok +TELEMETRY .*a trace that was just made is at 127/),
    });
    const elsewhere = await startTraceStore();
    try {
      expect(await ask(elsewhere.url)).toMatchObject({
        code: 4,
        out: expect.stringMatching(
          /warn +TELEMETRY .*took a trace that was just made, and 127\.0\.0\.1:\d+ does not have it/,
        ),
      });
    } finally {
      await elsewhere.stop();
    }
    const { port } = new URL(constellation().traces.url);
    await constellation().traces.stop();
    await doctors.names('TELEMETRY', 'fail', /the receiver did not take|does not take/);
    receiver = await startTraceStore({ port: Number(port) });
    await doctors.isOkAgain('TELEMETRY');
  });
});

/** That hold a device of the user, as Redis has it. */
async function gatewaysOf(user: string): Promise<(string | undefined)[]> {
  const { Redis } = await import('ioredis');
  const redis = new Redis(constellation().redis.url);
  try {
    return Object.values(await redis.hgetall(`keytrail:devices:{${user}}`)).map((entry) => entry.split('|')[1]);
  } finally {
    redis.disconnect();
  }
}
