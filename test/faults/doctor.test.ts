import { appendFileSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { jetstreamManager } from '@nats-io/jetstream';
import { headers } from '@nats-io/nats-core';
import { connect } from '@nats-io/transport-node';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { someone } from '../e2e/world.ts';
import { type DoctorWorld, startDoctorWorld } from './doctor-world.ts';

const leaseMs = 15_000;
const renewMs = 5_000;
/** All but what needs tokens of devices. */
const sound =
  'SERVICES_REACHABLE,BUILD_RUNNING,SOURCES_ON_DISK,FLEET_MIXED,CONTRACTS_AGREE,DATABASE,MIGRATIONS,NATS,REDIS,PRESENCE,LEASES,CONSUMERS,OUTBOX,TELEMETRY';

let doctors: DoctorWorld;
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

  test('an event that no handler can take', async () => {
    const unreadable = headers();
    unreadable.set('Nats-Msg-Id', 'unreadable');
    const sequence = await withJetStream(async (manager) => {
      const { seq } = await manager
        .jetstream()
        .publish('keytrail.session.v1.key_request_due', new Uint8Array([255]), { headers: unreadable });
      return seq;
    });
    await until('CONSUMERS', 'warn', /events come again and again: session-dispatcher of SESSION/);
    await withJetStream((manager) => manager.streams.deleteMessage('SESSION', sequence));
  });

  test('a stream that was deleted is told as lost, also once a service has made it anew', async () => {
    await withJetStream((manager) => manager.streams.delete('PRESENCE'));
    await until('STREAMS', 'either', /stream PRESENCE/);
  });

  test('PostgreSQL stopped', async () => {
    await constellation().postgres.halt?.();
    await doctors.names('DATABASE', 'fail', /cannot be reached/);
    await doctors.names('DATABASE', 'fail', /cannot be reached/, '--direct');
    await doctors.names('SESSION_ROWS', 'unknown', /could not be found out/);
    await constellation().postgres.restart?.();
    await doctors.isOkAgain('DATABASE,OUTBOX,SESSION_ROWS');
  });

  test('Redis away', async () => {
    await constellation().redis.halt?.();
    await doctors.names('REDIS', 'fail', /Redis does not answer/);
    await doctors.names('GHOSTS', 'unknown', /could not be found out/);
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

  test('a gateway that was killed, and the entries that it left (H5)', async () => {
    const [gateway] = constellation().of('presence');
    await Promise.all(Array.from({ length: 6 }, () => doctors.world.online(someone('device'), 'phone')));
    await gateway?.process.kill('SIGKILL');
    await doctors.names(
      'SERVICES_REACHABLE',
      'fail',
      /presence at 127\.0\.0\.1:\d+: nothing answers there \(ECONNREFUSED\)/,
    );
    // Of those that attach elsewhere at once there is nothing left; Redis keeps what nobody took over.
    await gateway?.process.restart();
    await doctors.isOkAgain('SERVICES_REACHABLE,LEASES,PRESENCE');
  });

  test('entries of a gateway that is gone', async () => {
    const { Redis } = await import('ioredis');
    const redis = new Redis(constellation().redis.url);
    try {
      await redis.hset('keytrail:devices:{ghost}', 'phone', '1|gone-1|a-connection|1700000000000');
      await doctors.names('GHOSTS', 'warn', /1 of \d+ entries point to 1 gateways that are gone/);
      await redis.del('keytrail:devices:{ghost}');
    } finally {
      redis.disconnect();
    }
    await doctors.isOkAgain('GHOSTS');
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

  test('sources that were changed on disk, and then two builds', async () => {
    const file = join(doctors.release.folder, 'services/session/src/main.ts');
    const before = readFileSync(file, 'utf8');
    const [session] = constellation().of('session');
    appendFileSync(file, '// changed\n');
    await until('SOURCES_ON_DISK', 'warn', /the sources on disk have changed since they were loaded/);
    await session?.process.restart();
    await doctors.names('FLEET_MIXED', 'warn', /2 builds run/);
    writeFileSync(file, before);
    await session?.process.restart();
    await doctors.isOkAgain('SOURCES_ON_DISK,FLEET_MIXED');
  });

  test('a telemetry receiver that is away', async () => {
    await constellation().traces.stop();
    await doctors.names('TELEMETRY', 'fail', /the receiver did not take|does not take/);
  });
});

/** Looks until the check ends so; `either` is warn or fail. */
async function until(
  code: 'STREAMS' | 'CONSUMERS' | 'SOURCES_ON_DISK',
  status: 'warn' | 'either',
  words: RegExp,
): Promise<void> {
  for (let tries = 0; ; tries++) {
    const { of } = await doctors.findings(code);
    const found = of(code);
    const so = status === 'either' ? found.status === 'warn' || found.status === 'fail' : found.status === status;
    if ((so && words.test(found.summary)) || tries > 200) {
      expect(found.summary).toMatch(words);
      expect(so).toBe(true);
      return;
    }
  }
}
