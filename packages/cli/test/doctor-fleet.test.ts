import { once } from 'node:events';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { timestampFromMs } from '@bufbuild/protobuf/wkt';
import { CheckStatus } from '@keytrail/contracts';
import { checkCatalogue, type Status } from '@keytrail/diagnosis';
import { afterAll, beforeAll, describe, expect, it, test } from 'vitest';
import type { ServiceName } from '../src/connection.ts';
import { type Says, type ScriptedFleet, type ScriptedProcess, scriptFleet } from './scripted-fleet.ts';

let fleet: ScriptedFleet;
beforeAll(() => {
  fleet = scriptFleet();
});
afterAll(() => fleet?.stop());

const start = (service: ServiceName, says: Says = {}): Promise<ScriptedProcess> => fleet.start(service, says);
const { OK, WARN, FAIL, SKIP, UNKNOWN, UNSPECIFIED } = CheckStatus;

describe('what a process says of a check', () => {
  it.each<[says: CheckStatus, status: Status, exitCode: number]>([
    [OK, 'ok', 0],
    [SKIP, 'skip', 0],
    [FAIL, 'fail', 1],
    [WARN, 'warn', 4],
    [UNKNOWN, 'unknown', 5],
    [UNSPECIFIED, 'unknown', 5],
    // As of a newer build, with a status that this command cannot judge.
    [99 as CheckStatus, 'unknown', 5],
  ])('(%s) is told as %s, and the command ends with %s', async (says, status, exitCode) => {
    const alone = await start('session', { checks: { SESSION_ROWS: { status: says, summary: 'as it said' } } });
    const { ended, exitCode: written, of } = await fleet.doctor([alone], ['--only', 'SESSION_ROWS']);
    expect({ ended, written, status: of('SESSION_ROWS').status }).toEqual({
      ended: exitCode,
      written: exitCode,
      status,
    });
    expect(of('SESSION_ROWS').summary).toBe('as it said');
  });

  it('comes with its evidence, its hint and its SQL', async () => {
    const said = { evidence: { looked: '3' }, hint: 'rotate', sql: 'SELECT 1', subjects: ['a'] };
    const session = await start('session', { checks: { SESSION_ROWS: { status: FAIL, summary: 'so', ...said } } });
    const { of } = await fleet.doctor([session], ['--only', 'SESSION_ROWS']);
    expect(of('SESSION_ROWS').places).toMatchObject([{ where: 'session', ...said }]);
  });
});

describe('each process', () => {
  it('is asked by itself for what is its own: what one of them says is not covered by another', async () => {
    const [sound, faulty] = [
      await start('presence', { checks: { LEASES: OK } }),
      await start('presence', { checks: { LEASES: { status: FAIL, summary: 'no lease' } } }),
    ];
    const { ended, of } = await fleet.doctor([sound, faulty], ['--only', 'LEASES']);
    expect({ ended, ...of('LEASES') }).toMatchObject({
      ended: 1,
      status: 'fail',
      summary: `presence at ${faulty.target}: no lease`,
    });
    expect(of('LEASES').places).toHaveLength(2);
  });

  it('whose build does not have a check leaves that unknown, and does not pass it', async () => {
    const [now, older] = [await start('presence', { checks: { LEASES: OK } }), await start('presence')];
    const { ended, of } = await fleet.doctor([now, older], ['--only', 'LEASES']);
    expect({ ended, ...of('LEASES') }).toMatchObject({
      ended: 5,
      status: 'unknown',
      summary: `presence at ${older.target}: its build does not have this check`,
    });
  });

  it('that falls silent is asked once, and what it would have said is unknown', async () => {
    const session = await start('session', { checks: { SESSION_ROWS: 'silence', ENVELOPE_COUNTS: OK } });
    const told = await fleet.doctor(
      [session],
      ['--timeout', '200ms', '--only', 'SESSION_ROWS,ENVELOPE_COUNTS,OLDEST_OPEN_REQUEST'],
    );
    expect(session.asked.map(({ code }) => code)).toEqual(['SESSION_ROWS']);
    expect(told.ended).toBe(5);
    for (const code of ['SESSION_ROWS', 'ENVELOPE_COUNTS', 'OLDEST_OPEN_REQUEST'] as const)
      expect(told.of(code).status, code).toBe('unknown');
  });

  it('that is not ready fails, and one that is ready and warns is a warning', async () => {
    const processes = await Promise.all([
      start('identity-keys'),
      start('session', { described: { ready: false, notReadyBecause: 'SCHEMA_BEHIND' } }),
      start('conversation', { described: { notReadyBecause: 'the database is ahead' } }),
      start('presence'),
    ]);
    const all = await fleet.doctor(processes, ['--only', 'SERVICES_REACHABLE']);
    expect(all.ended).toBe(1);
    expect(all.of('SERVICES_REACHABLE').places.map(({ status, summary }) => `${status}: ${summary}`)).toEqual([
      'ok: it answers, and is ready',
      'fail: it is not ready: SCHEMA_BEHIND',
      'warn: it is ready, and warns: the database is ahead',
      'ok: it answers, and is ready',
    ]);
  });

  it('that is none, but a port of HTTP, is told as that, as every command tells it', async () => {
    const web = createServer((_, response) => response.end('hello')).listen(0, '127.0.0.1');
    await once(web, 'listening');
    const target = `127.0.0.1:${(web.address() as AddressInfo).port}`;
    const { ended, of } = await fleet.doctor(
      [{ service: 'session', target, asked: [] }, await start('presence')],
      ['--only', 'SERVICES_REACHABLE'],
    );
    web.close();
    expect({ ended, place: of('SERVICES_REACHABLE').places[0] }).toMatchObject({
      ended: 1,
      place: { status: 'fail', summary: 'what listens there does not speak gRPC' },
    });
  });

  it('that is of another service than its target says fails, and is asked nothing', async () => {
    const stranger = await start('presence', { checks: { SESSION_ROWS: OK } });
    const sound = await start('session', { checks: { SESSION_ROWS: OK } });
    const mistaken = { ...stranger, service: 'session' as const };
    const { ended, of } = await fleet.doctor([mistaken, sound], ['--only', 'SERVICES_REACHABLE,SESSION_ROWS']);
    expect(of('SERVICES_REACHABLE').places[0]).toMatchObject({
      status: 'fail',
      summary: 'it is presence, not session',
      hint: expect.stringContaining('KEYTRAIL_SESSION_TARGET'),
    });
    expect({ ended, rows: of('SESSION_ROWS').status, asked: stranger.asked }).toEqual({
      ended: 1,
      rows: 'ok',
      asked: [],
    });
  });
});

describe('what any process of a service can tell', () => {
  it('is asked of the next one when the first cannot tell', async () => {
    const blind = await start('session', { checks: { SESSION_ROWS: UNKNOWN } });
    const seeing = await start('session', { checks: { SESSION_ROWS: FAIL } });
    expect((await fleet.doctor([blind, seeing], ['--only', 'SESSION_ROWS'])).ended).toBe(1);
    expect([blind.asked.length, seeing.asked.length]).toEqual([1, 1]);
    // And of no further one, when it can.
    expect((await fleet.doctor([seeing, blind], ['--only', 'SESSION_ROWS'])).ended).toBe(1);
    expect([blind.asked.length, seeing.asked.length]).toEqual([1, 2]);
  });

  it('is asked of a process of another service where it is the same for all', async () => {
    const blind = await start('identity-keys', { checks: { CONSUMERS: UNKNOWN } });
    const seeing = await start('presence', { checks: { CONSUMERS: WARN } });
    expect((await fleet.doctor([blind, seeing], ['--only', 'CONSUMERS'])).ended).toBe(4);
  });

  it('is unknown while nobody is there to be asked, whatever other services say', async () => {
    const presence = await start('presence', { checks: { LEASES: OK } });
    for (const { code, place, of } of checkCatalogue) {
      if (place !== 'service' && place !== 'process') continue;
      if ((of as readonly string[]).includes('presence')) continue;
      const told = await fleet.doctor([presence], ['--only', code]);
      expect({ code, status: told.of(code).status, ended: told.ended }).toEqual({ code, status: 'unknown', ended: 5 });
    }
  });
});

describe('what a store keeps from being asked', () => {
  it('follows from the check of that store', async () => {
    const session = await start('session', { checks: { NATS: FAIL, STREAMS: UNKNOWN } });
    const { of } = await fleet.doctor([session], ['--only', 'NATS,STREAMS']);
    expect(of('STREAMS').places).toContainEqual(
      expect.objectContaining({ where: `session at ${session.target}`, follows: 'NATS', hint: 'see NATS' }),
    );
  });

  it('is not tried by REPRODUCTION, which would end there, and leave users that nobody erases', async () => {
    const session = await start('session', { checks: { NATS: FAIL } });
    const environment = { KEYTRAIL_TOKEN_COMMAND: 'false' };
    const barred = await fleet.doctor([session], ['--only', 'NATS,REPRODUCTION'], environment);
    expect(barred.of('REPRODUCTION')).toMatchObject({ status: 'unknown', places: [{ follows: 'NATS' }] });
    const sound = await start('session', { checks: { NATS: WARN } });
    const tried = await fleet.doctor([sound], ['--only', 'NATS,REPRODUCTION'], environment);
    expect(tried.of('REPRODUCTION').places[0]).not.toHaveProperty('follows');
  });
});

test('where no process answers, each check says what it follows from', async () => {
  const { of } = await fleet.doctor(
    [{ service: 'session', target: '127.0.0.1:1', asked: [] }],
    ['--skip', 'SERVICES_REACHABLE,REPRODUCTION'],
  );
  for (const { code } of checkCatalogue)
    for (const { where, status, follows, hint } of of(code)?.places ?? [])
      expect({ code, where, status, follows, hint: hint !== '' && hint !== undefined }).toMatchObject({
        status: 'unknown',
        follows: 'SERVICES_REACHABLE',
        hint: true,
      });
});

test('that the doctor could read the rows is said where there are rows, and no database was given', async () => {
  const away = (service: ServiceName): ScriptedProcess => ({ service, target: '127.0.0.1:1', asked: [] });
  const hints = async (environment: Record<string, string> = {}) => {
    const codes = ['SOURCES_ON_DISK', 'DATABASE', 'SESSION_ROWS', 'LEASES', 'GHOSTS'] as const;
    const { of } = await fleet.doctor([away('session'), away('presence')], ['--only', codes.join(',')], environment);
    const told = codes.flatMap((code) =>
      of(code)
        .places.filter(({ hint }) => hint?.includes('--database-url'))
        .map(({ where }) => `${code} ${where.split(' at ')[0]}`),
    );
    return told;
  };
  expect(await hints()).toEqual(['DATABASE session', 'SESSION_ROWS session']);
  expect(await hints({ KEYTRAIL_DATABASE_URL_SESSION: 'postgres://nobody:secret@127.0.0.1:1/none' })).toEqual([]);
});

describe('CONVERSATION_SESSIONS', () => {
  const subjects = ['c1/s1', 'c2/s2'];
  const conversation = (status: CheckStatus) =>
    start('conversation', { checks: { CONVERSATION_SESSIONS: { status, subjects } } });

  it('has session look for what conversation names, and fails by either', async () => {
    const session = await start('session', { checks: { CONVERSATION_SESSIONS: FAIL } });
    const sound = await fleet.doctor([await conversation(OK), session], ['--only', 'CONVERSATION_SESSIONS']);
    expect(sound.ended).toBe(1);
    expect(session.asked).toEqual([{ code: 'CONVERSATION_SESSIONS', subjects }]);
    const stored = await start('session', { checks: { CONVERSATION_SESSIONS: OK } });
    const lost = await fleet.doctor([await conversation(FAIL), stored], ['--only', 'CONVERSATION_SESSIONS']);
    expect({ ended: lost.ended, asked: stored.asked.length }).toEqual({ ended: 1, asked: 1 });
  });

  it('is unknown while conversation cannot name any: that none is missing would be said of nothing', async () => {
    const session = await start('session', { checks: { CONVERSATION_SESSIONS: OK } });
    const told = await fleet.doctor([await conversation(UNKNOWN), session], ['--only', 'CONVERSATION_SESSIONS']);
    expect({ ended: told.ended, asked: session.asked }).toEqual({ ended: 5, asked: [] });
  });
});

test('OLD_BUILD_WRITES compares the builds in rows with those that run, the last start counts, and the clock of those who tell', async () => {
  const at = (ms: number) => new Date(ms).toISOString();
  const ended = async (subject: string, { startedMs = 100_000, nowMs = 1_000_000 } = {}) => {
    const checks = { OLD_BUILD_WRITES: { status: OK, subjects: [subject] } };
    const described = { now: timestampFromMs(nowMs), process: { startedAt: timestampFromMs(startedMs) } };
    const processes = await Promise.all(
      (['identity-keys', 'session', 'conversation'] as const).map((service) => start(service, { checks, described })),
    );
    return (await fleet.doctor(processes, ['--only', 'OLD_BUILD_WRITES'])).ended;
  };
  expect(await ended(`1.0.0+now ${at(900_000)}`)).toBe(0);
  expect(await ended(`0.9.0+old ${at(900_000)}`)).toBe(1);
  expect(await ended(`0.9.0+old ${at(900_000)}`, { startedMs: 950_000 })).toBe(0);
  // A roll-out whose last process served on while its successor started: it passes.
  const rolledOut = { startedMs: 870_000 };
  expect(await ended(`0.9.0+old ${at(900_000)}`, rolledOut)).toBe(4);
  expect(await ended(`0.9.0+old ${at(900_000)}`, { ...rolledOut, nowMs: 1_500_000 })).toBe(0);
});

test('contracts are compared with those of peers that no target names, too', async () => {
  const now = 1_000_000;
  const met = (contractDigest: string, seenMs: number) => ({
    described: {
      now: timestampFromMs(now),
      peers: [{ service: 'conversation', writerBuild: '1.0.0+now', contractDigest, seenAt: timestampFromMs(seenMs) }],
    },
  });
  const ended = async (says: Says) =>
    (await fleet.doctor([await start('session', says)], ['--only', 'CONTRACTS_AGREE'])).ended;
  expect(await ended(met('contract', now - 1_000))).toBe(0);
  expect(await ended(met('another', now - 1_000))).toBe(4);
  expect(await ended(met('another', now - 3_600_000))).toBe(0);
});

test('a process whose clock is far from that of the others fails, by the time that it tells', async () => {
  const sound = await start('session', { checks: { CLOCKS: OK } });
  const wrong = await start('session', {
    checks: { CLOCKS: OK },
    described: { now: timestampFromMs(Date.now() + 3_600_000) },
  });
  const { ended, of } = await fleet.doctor([sound, wrong], ['--only', 'CLOCKS']);
  expect({ ended, fleet: of('CLOCKS').places.find(({ where }) => where === 'fleet')?.status }).toEqual({
    ended: 1,
    fleet: 'fail',
  });
});

describe('a token that', () => {
  it('nobody takes is a fault of the command line; one that some do not take is theirs', async () => {
    const refusing = await start('session', { takesToken: false, checks: { SESSION_ROWS: OK } });
    const nobody = await fleet.doctor([refusing], ['--only', 'SERVICES_REACHABLE']);
    expect(nobody).toMatchObject({ ended: 2, err: expect.stringContaining('the token is not taken') });
    const some = await fleet.doctor([refusing, await start('presence')], ['--only', 'SERVICES_REACHABLE,SESSION_ROWS']);
    expect(some.ended).toBe(1);
    expect(some.of('SESSION_ROWS')).toMatchObject({
      status: 'unknown',
      summary: 'none of its processes takes the token',
    });
  });
});

test('checks are run in the order of their cost, those that were chosen alone, and told as they end', async () => {
  const session = await start('session', {
    checks: { SESSION_ROWS: OK, ENVELOPE_COUNTS: OK, OLDEST_OPEN_REQUEST: OK },
  });
  const codes = ['SESSION_ROWS', 'ENVELOPE_COUNTS', 'OLDEST_OPEN_REQUEST'];
  const { err } = await fleet.doctor(
    [session],
    ['--only', [...codes].reverse().join(','), '--skip', 'envelope-counts'],
  );
  expect(session.asked.map(({ code }) => code)).toEqual(['SESSION_ROWS', 'OLDEST_OPEN_REQUEST']);
  expect(err.split('\n').filter(Boolean)).toEqual(['ok      SESSION_ROWS', 'ok      OLDEST_OPEN_REQUEST', '2 ok']);
});
