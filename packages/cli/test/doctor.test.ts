import { randomUUID } from 'node:crypto';
import { create } from '@bufbuild/protobuf';
import { timestampFromMs } from '@bufbuild/protobuf/wkt';
import { DescribeProcessResponseSchema } from '@keytrail/contracts';
import type { CheckCode, Status } from '@keytrail/diagnosis';
import { describe, expect, it, test } from 'vitest';
import { addressesOf } from '../src/doctor/addresses.ts';
import { databaseUrls } from '../src/doctor/databases.ts';
import { exitCodeOf, type Finding, mergePlaces, type Place, worstOf } from '../src/doctor/finding.ts';
import { judgeContracts, judgeMixed } from '../src/doctor/fleet/builds.ts';
import { judgeClocks } from '../src/doctor/fleet/clocks.ts';
import { judgeReachable } from '../src/doctor/fleet/reachable.ts';
import { judgeOldWriters } from '../src/doctor/fleet/writers.ts';
import { followingStores } from '../src/doctor/following.ts';
import type { Asked } from '../src/doctor/processes.ts';
import { findingsJson, findingsTable } from '../src/doctor/rendering.ts';
import { tokenCommand } from '../src/doctor/token-command.ts';
import { run } from '../src/program.ts';

const place = (status: Status, where = 'session', more: Partial<Place> = {}): Place => ({
  where,
  status,
  summary: `it is ${status}`,
  ...more,
});

function asked(
  service: Asked['service'],
  build: string,
  more: { contract?: string; sources?: string; startedMs?: number } = {},
): Asked {
  return {
    service,
    address: `ipv4:127.0.0.1:${build.length}`,
    described: create(DescribeProcessResponseSchema, {
      ready: true,
      now: timestampFromMs(1_000_000),
      process: {
        service,
        writerBuild: build,
        sourcesDigest: more.sources ?? build,
        contractDigest: more.contract ?? 'contract',
        startedAt: timestampFromMs(more.startedMs ?? 0),
      },
    }),
  };
}
const silent: Asked = { service: 'session', address: 'ipv4:127.0.0.1:1', problem: 'no connection' };

describe('a target is taken apart into its processes:', () => {
  const names: Readonly<Record<string, string[]>> = { session: ['10.0.0.1', 'fd00::1', '10.0.0.1'] };
  it.each([
    ['127.0.0.1:50051', ['ipv4:127.0.0.1:50051']],
    ['[::1]:50051', ['ipv6:[::1]:50051']],
    ['session:50051', ['ipv4:10.0.0.1:50051', 'ipv6:[fd00::1]:50051']],
    ['dns:///session:50051', ['ipv4:10.0.0.1:50051', 'ipv6:[fd00::1]:50051']],
    ['dns:session:50051', ['ipv4:10.0.0.1:50051', 'ipv6:[fd00::1]:50051']],
    ['ipv4:10.0.0.1:1,10.0.0.2:2', ['ipv4:10.0.0.1:1', 'ipv4:10.0.0.2:2']],
    ['ipv6:[::1]:1', ['ipv6:[::1]:1']],
    ['unix:/run/session.sock', ['unix:/run/session.sock']],
  ])('%s', async (target, addresses) => {
    expect(await addressesOf(target, async (host) => names[host] ?? [])).toEqual(addresses);
  });

  it.each([
    'session',
    'session:',
    ':50051',
    'dns:///session',
    'http://session:50051',
    'session:0',
    'ipv4:session:1',
    'xds:///session:1',
  ])('%s is none', async (target) => {
    await expect(addressesOf(target, async () => [])).rejects.toThrow('not a target');
  });
});

describe('what all places say is put together:', () => {
  it('what is not known is worse than a warning, and better than a failure', () => {
    expect(worstOf(['ok', 'warn', 'unknown', 'skip'])).toBe('unknown');
    expect(worstOf(['ok', 'warn', 'unknown', 'fail'])).toBe('fail');
    expect(worstOf(['ok', 'skip'])).toBe('ok');
    expect(worstOf([])).toBe('skip');
  });

  it('a check that nobody answered is unknown', () => {
    expect(mergePlaces('NATS', [])).toMatchObject({
      status: 'unknown',
      hint: expect.stringContaining('--database-url'),
    });
  });

  it('the worst is told, and how many say so', () => {
    const places = [place('ok'), place('fail', 'one', { hint: 'do this' }), place('fail', 'two')];
    expect(mergePlaces('NATS', places)).toMatchObject({
      status: 'fail',
      summary: 'one, and 1 more: it is fail',
      hint: 'do this',
    });
  });
});

describe('the exit code', () => {
  it.each<[Status[], number]>([
    [['ok', 'skip'], 0],
    [['ok', 'fail', 'unknown', 'warn'], 1],
    [['ok', 'warn'], 4],
    [['ok', 'warn', 'unknown'], 5],
  ])('of %j is %i', (statuses, code) => {
    expect(exitCodeOf(statuses.map((status) => ({ ...finding, status })))).toBe(code);
  });

  const all = { KEYTRAIL_OPERATOR_TOKEN: 'a.token' };
  it.each<[args: string[], code: number, words: string, environment?: Record<string, string>]>([
    [['--only', 'NO_SUCH_CHECK'], 2, 'there is no check NO_SUCH_CHECK'],
    [['-o', 'yaml'], 2, 'Allowed choices'],
    [['--wait', '5'], 2, '--wait'],
    [['--timeout', '0s', '--only', 'nats'], 2, 'must be more than nothing'],
    [[], 2, 'nothing to ask', { KEYTRAIL_SESSION_TARGET: '' }],
    [['--only', 'nats', '--skip', 'nats'], 2, 'nothing to check'],
    [['--database-url', 'presence=postgres://localhost/x'], 2, '<service>=<url>'],
    [['--database-url', 'session=http://secret@localhost'], 2, 'the database URL of session is none'],
    [['--only', 'nats'], 2, 'no token', { KEYTRAIL_OPERATOR_TOKEN: '' }],
    [['--only', 'nats'], 2, 'not a target', { KEYTRAIL_SESSION_TARGET: 'session' }],
    [['--only', 'nats,services-reachable'], 3, '1 fail'],
  ])('of doctor %j is %i', async (args, code, words, environment = {}) => {
    const written = { out: '', err: '' };
    const ended = await run(['doctor', ...args], {
      environment: { KEYTRAIL_SESSION_TARGET: '127.0.0.1:1', ...all, ...environment },
      out(text) {
        written.out += text;
      },
      say(text) {
        written.err += text;
      },
    });
    expect({ ended, err: written.err }).toEqual({ ended: code, err: expect.stringContaining(words) });
    expect(written.err).not.toContain('secret');
  });
});

const finding: Finding = mergePlaces('SESSION_ROWS', [
  place('fail', 'database of session', {
    summary: '1 of 2 session rows lack their ephemeral key',
    evidence: { looked: 2 },
    hint: 'rotate',
    sql: 'SELECT 1',
  }),
]);

describe('findings', () => {
  it('as a table have one line each, and what is wrong below', () => {
    expect(findingsTable([mergePlaces('NATS', [place('ok')]), finding], { sql: 'direct' })).toBe(
      `STATUS   CHECK         WHAT
ok       NATS          it is ok
fail     SESSION_ROWS  1 of 2 session rows lack their ephemeral key [step 1]
           looked=2
         hint: rotate
         page: docs/checks/session-rows.md
         sql:
           SELECT 1`,
    );
  });

  it('that only follow from a process that does not answer are told together', () => {
    const follows = place('unknown', 'session at 127.0.0.1:1', { follows: 'SERVICES_REACHABLE', hint: 'look there' });
    const away = mergePlaces('SERVICES_REACHABLE', [place('fail', 'session', { hint: 'is the process there?' })]);
    const ofItsOwn = mergePlaces('STREAMS', [follows, place('unknown', 'presence at 127.0.0.1:2')]);
    const silenced = (['DATABASE', 'OUTBOX'] as const).map((code) => mergePlaces(code, [place('ok'), follows]));
    expect(findingsTable([away, ...silenced, ofItsOwn])).toBe(
      `STATUS   CHECK               WHAT
fail     SERVICES_REACHABLE  it is fail
         hint: is the process there?
         page: docs/checks/services-reachable.md
unknown  STREAMS             it is unknown
         session at 127.0.0.1:1: unknown: it is unknown
         presence at 127.0.0.1:2: unknown: it is unknown
         hint: look there
         page: docs/checks/streams.md
unknown  2 checks            could not be asked of processes that do not answer, or have no target: see SERVICES_REACHABLE
         DATABASE, OUTBOX`,
    );
    expect(findingsTable(silenced)).toContain('hint: look there');
    const readable = silenced.map(({ code, places }) =>
      mergePlaces(
        code,
        places.map((each) => ({ ...each, ...(each.follows && { hint: 'or with --database-url' }) })),
      ),
    );
    expect(findingsTable([away, ...readable])).toMatch(/DATABASE, OUTBOX\n +hint: with --database-url/);
    expect(JSON.parse(findingsJson([away, ...silenced], 1)).checks).toHaveLength(3);
  });

  it('that only follow from a store that fails are told together, too, and what failed by itself is not', () => {
    const nats = mergePlaces('NATS', [place('fail', 'session at a:1'), place('ok', 'presence at b:1')]);
    const blind = (code: CheckCode, where: string) =>
      mergePlaces(code, followingStores(code, [place('unknown', where)], [nats]));
    const table = findingsTable([nats, blind('STREAMS', 'session at a:1'), blind('CONSUMERS', 'session at a:1')]);
    expect(table).toMatch(
      /unknown +2 checks +could not be made without what they ask: see NATS\n +STREAMS, CONSUMERS$/,
    );
    expect(blind('STREAMS', 'session at a:1').hint).toBe('see NATS');
    for (const other of [blind('STREAMS', 'presence at b:1'), blind('OUTBOX', 'session')])
      expect(other.places[0]).not.toHaveProperty('follows');
  });

  it('of builds are told of each process, also when nothing is wrong', () => {
    const runs = (where: string, build: string, status: Status, restartAdvice: string) =>
      place(status, where, {
        summary: `${build} since 12:00, supervised by systemd`,
        evidence: { build, restartAdvice },
      });
    const sound = [
      runs('session at a:1', '1+a', 'ok', 'systemctl restart a'),
      runs('session at b:1', '1+b', 'ok', 'systemctl restart b'),
    ];
    expect(findingsTable([mergePlaces('BUILD_RUNNING', sound)])).toBe(
      `STATUS   CHECK          WHAT
ok       BUILD_RUNNING  session at a:1: 1+a since 12:00, supervised by systemd, and 1 more [step 4]
         session at a:1: ok: 1+a since 12:00, supervised by systemd
           to restart it: systemctl restart a
         session at b:1: ok: 1+b since 12:00, supervised by systemd
           to restart it: systemctl restart b`,
    );
    const one = [...sound, runs('session at c:1', '1+c', 'warn', 'start it under systemd')];
    expect(findingsTable([mergePlaces('BUILD_RUNNING', one)])).toMatch(
      /^warn .*\n(.*\n){4} +session at c:1: warn: 1\+c .*\n +to restart it: start it under systemd\n +page: docs\/checks\/build-running.md$/m,
    );
  });

  it('are coloured only when asked for', () => {
    const colour = '\u001B[';
    expect(findingsTable([finding], { coloured: true })).toContain(`${colour}31mfail`);
    expect(findingsTable([finding])).not.toContain(colour);
  });

  it('as JSON have all of it, with the exit code', () => {
    expect(JSON.parse(findingsJson([finding], 1))).toMatchObject({
      status: 'fail',
      exitCode: 1,
      checks: [{ code: 'SESSION_ROWS', step: 1, page: 'docs/checks/session-rows.md', places: [{ sql: 'SELECT 1' }] }],
    });
  });
});

describe('FLEET_MIXED', () => {
  it('is ok with one build, and a warning with two, or with one of two trees', () => {
    expect(judgeMixed([asked('session', '1+a'), asked('presence', '1+a')]).status).toBe('ok');
    expect(judgeMixed([asked('session', '1+a'), asked('session', '1+b')])).toMatchObject({
      status: 'warn',
      summary: '2 builds run: 1+a (session); 1+b (session)',
    });
    const trees = [asked('session', '1+a', { sources: 'x' }), asked('session', '1+a', { sources: 'y' })];
    expect(judgeMixed(trees)).toMatchObject({ status: 'warn', summary: expect.stringContaining('different sources') });
  });

  it('sees builds of peers that no target names, when they answered lately', () => {
    const met = (seenMs: number) => {
      const own = asked('session', '1+a');
      own.described?.peers.push({
        $typeName: 'keytrail.diagnostics.v1.PeerBuild',
        service: 'conversation',
        writerBuild: '0+old',
        contractDigest: '',
        seenAt: timestampFromMs(seenMs),
      });
      return judgeMixed([own]).status;
    };
    expect(met(999_000)).toBe('warn');
    expect(met(100_000)).toBe('ok');
  });

  it('takes a peer that answered before the last start of its service for what that start replaced', () => {
    const met = (seenMs: number, ...startedMs: number[]) => {
      const own = asked('session', '1+a');
      own.described?.peers.push({
        $typeName: 'keytrail.diagnostics.v1.PeerBuild',
        service: 'conversation',
        writerBuild: '0+old',
        contractDigest: 'old',
        seenAt: timestampFromMs(seenMs),
      });
      const all = [own, ...startedMs.map((started) => asked('conversation', '1+a', { startedMs: started }))];
      return [judgeMixed(all), judgeContracts(all)].map(({ status }) => status);
    };
    expect(met(900_500, 800_000, 900_600)).toEqual(['ok', 'ok']);
    expect(met(900_700, 800_000, 900_600)).toEqual(['warn', 'warn']);
    // What another service started says nothing of it.
    expect(met(900_500)).toEqual(['warn', 'warn']);
  });

  it('is not ok while a process is silent', () => {
    expect(judgeMixed([asked('session', '1+a'), silent]).status).toBe('unknown');
    expect(judgeMixed([silent]).status).toBe('unknown');
  });
});

test('CONTRACTS_AGREE warns of two, and does not guess', () => {
  expect(judgeContracts([asked('session', 'a'), asked('presence', 'b')]).status).toBe('ok');
  expect(judgeContracts([asked('session', 'a'), asked('presence', 'a', { contract: 'other' })]).status).toBe('warn');
  expect(judgeContracts([asked('session', 'a'), silent]).status).toBe('unknown');
  expect(judgeContracts([asked('session', 'a', { contract: '' })]).status).toBe('unknown');
});

describe('OLD_BUILD_WRITES', () => {
  const at = (ms: number) => new Date(ms).toISOString();
  // It is told at 1,000,000.
  const started = (...times: number[]) => times.map((startedMs) => asked('session', '1+a', { startedMs }));
  it.each<[string[], Status]>([
    [[], 'ok'],
    [[`1+a ${at(999_000)}`], 'ok'],
    [[`0+old ${at(300_000)}`], 'ok'],
    [[`1+a ${at(999_000)}`, `0+old ${at(999_000)}`], 'fail'],
    [[`0+older ${at(200_000)}`, `0+old ${at(999_000)}`], 'fail'],
  ])('of %j is %s', (subjects, status) => {
    expect(judgeOldWriters(subjects, started(100_000, 300_000)).status).toBe(status);
  });

  it('passes once the last of a roll-out has ended, which serves on while its successor starts, and fails of one that goes on', () => {
    const status = (wroteMs: number) => judgeOldWriters([`0+old ${at(wroteMs)}`], started(100_000, 500_000)).status;
    expect([500_000, 500_001, 619_999, 620_000].map(status)).toEqual(['ok', 'warn', 'warn', 'fail']);
  });

  it('says of one that wrote after the last start, and no more, until when', () => {
    const of = (wroteMs: number) => judgeOldWriters([`0+old ${at(wroteMs)}`], started(100_000, 200_000));
    expect(of(400_001).status).toBe('fail');
    expect(of(400_000)).toMatchObject({
      status: 'ok',
      summary: expect.stringContaining(`0+old wrote until ${at(400_000)}`),
      evidence: { writerBuild: '0+old', wroteAt: at(400_000), lastStart: at(200_000) },
    });
    expect(of(200_015).status).toBe('ok');
  });

  it('is unknown while nobody tells which build runs', () => {
    expect(judgeOldWriters([], [silent]).status).toBe('unknown');
  });
});

describe('CLOCKS over the fleet', () => {
  const at = (offsetMs: number, withinMs = 1): Asked => ({ ...silent, clock: { offsetMs, withinMs } });
  it.each<[Asked[], Status]>([
    [[at(0), at(400)], 'ok'],
    [[at(0), at(502)], 'warn'],
    [[at(0), at(800, 400)], 'ok'],
    [[at(-3_000), at(2_100)], 'fail'],
    [[silent], 'unknown'],
  ])('of %j is %s', (processes, status) => {
    expect(judgeClocks(processes).status).toBe(status);
  });
});

test('SERVICES_REACHABLE has a place for each process, and for each service without a target', () => {
  const places = judgeReachable([asked('session', '1+a'), silent], [], ['presence']);
  expect(places.map(({ status }) => status)).toEqual(['ok', 'fail', 'unknown']);
});

test('SERVICES_REACHABLE tells one that does not take the token from one that is not there', () => {
  const refusing: Asked = { ...silent, problem: 'TOKEN_INVALID: the token has expired', tokenRefused: true };
  const [refused, away] = judgeReachable([refusing, silent, asked('presence', '1+a')], [], []);
  expect(refused).toMatchObject({ status: 'fail', hint: expect.stringContaining('that others take') });
  expect(away).toMatchObject({ status: 'fail', hint: expect.stringContaining('is the process there') });
});

test('SERVICES_REACHABLE says what operators do here about a process that is away, and which target is wrong', () => {
  const mistaken: Asked = { ...silent, problem: 'it is presence, not session', mistaken: true };
  const hints = judgeReachable([silent, mistaken], [], [], 'call the night shift').map(({ hint }) => hint);
  expect(hints).toEqual([
    expect.stringMatching(/here: call the night shift$/),
    expect.stringContaining('KEYTRAIL_SESSION_TARGET'),
  ]);
});

describe('URLs of databases', () => {
  it('come from options before the environment', () => {
    const environment = {
      KEYTRAIL_DATABASE_URL_SESSION: 'postgres://a/b',
      KEYTRAIL_DATABASE_URL_IDENTITY_KEYS: 'postgres://c/d',
    };
    expect([...databaseUrls(['session=postgresql://e/f?x=1'], environment)]).toEqual([
      ['identity-keys', 'postgres://c/d'],
      ['session', 'postgresql://e/f?x=1'],
    ]);
  });
});

describe('the token command', () => {
  it('gets user and device, whatever is in them, and is asked once for each', async () => {
    const token = tokenCommand(`printf '%s.%s.%s' ${randomUUID()}`);
    const first = await token('a$(b)', 'c;d');
    expect(first).toMatch(/\.a\$\(b\)\.c;d$/);
    expect(await token('a$(b)', 'c;d')).toBe(first);
  });

  it.each(['false', 'printf', "printf 'two words'"])('that is %s fails without what it printed', async (command) => {
    await expect(tokenCommand(command)('', '')).rejects.toThrow(/^the token command (ended|did not print)/);
  });
});

test('what a script reads of the exit code is what the command ends with, also when nothing answered', async () => {
  let out = '';
  const code = await run(['--timeout', '1s', 'doctor', '-o', 'json', '--only', 'SERVICES_REACHABLE'], {
    environment: { KEYTRAIL_SESSION_TARGET: '127.0.0.1:1', KEYTRAIL_OPERATOR_TOKEN: 'a.token' },
    out(text) {
      out += text;
    },
    say() {},
  });
  expect({ code, told: JSON.parse(out).exitCode }).toEqual({ code: 3, told: 3 });
});

describe('REPRODUCTION', () => {
  async function reproduced(command: string): Promise<{ status: Status; summary: string; hint: string }> {
    let out = '';
    await run(['--timeout', '1s', 'doctor', '-o', 'json', '--only', 'REPRODUCTION'], {
      environment: {
        ...Object.fromEntries(
          ['IDENTITY_KEYS', 'SESSION', 'CONVERSATION', 'PRESENCE'].map((name) => [
            `KEYTRAIL_${name}_TARGET`,
            '127.0.0.1:1',
          ]),
        ),
        KEYTRAIL_OPERATOR_TOKEN: 'a.token',
        KEYTRAIL_TOKEN_COMMAND: command,
      },
      out(text) {
        out += text;
      },
      say() {},
    });
    return JSON.parse(out).checks[0];
  }

  it.each(['false', "printf 'two words'"])(
    'is unknown, and no fault of the fleet, when tokens come from %s',
    async (command) => {
      expect(await reproduced(command)).toMatchObject({
        status: 'unknown',
        summary: expect.stringMatching(/^the token command (ended|did not print)/),
        hint: expect.stringContaining('KEYTRAIL_TOKEN_COMMAND'),
      });
    },
  );

  it('names no trace of a call that nobody answered', async () => {
    const { status, summary, hint } = await reproduced('printf a.token');
    expect({ status, summary }).toEqual({
      status: 'fail',
      summary: expect.stringMatching(/^it ended at “register”: /),
    });
    expect(hint).toBe('nobody answered: see SERVICES_REACHABLE');
  });
});
