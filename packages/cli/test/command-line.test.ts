import { randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { type AddressInfo, createServer, type Socket } from 'node:net';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { run } from '../src/program.ts';

/** The command without its process; what it does against a service is in services/session/test/operators-cli.test.ts. */
async function keytrail(args: readonly string[], environment: Readonly<Record<string, string>> = {}) {
  const written = { out: '', err: '' };
  const code = await run(args, {
    environment: { KEYTRAIL_SESSION_TARGET: '127.0.0.1:1', KEYTRAIL_OPERATOR_TOKEN: 'a.token', ...environment },
    out(text) {
      written.out += text;
    },
    say(text) {
      written.err += text;
    },
  });
  return { code, ...written };
}

describe('an option', () => {
  const id = randomUUID();
  it.each([
    [['explain', '--conversation', id, '--session', 's', '--device', 'alice/phone']],
    [['sessions', id, '--session', 's']],
    [['requests', 'list', '--conversation', id]],
  ])('of %j is that of the command, and leaves the target alone', async (args) => {
    const ran = await keytrail(args, { KEYTRAIL_SESSION_TARGET: '127.0.0.1:1', KEYTRAIL_CONVERSATION_TARGET: '' });
    expect(ran).toMatchObject({ code: 3, err: expect.stringContaining('ECONNREFUSED 127.0.0.1:1') });
  });

  it.each([
    [['--session', '127.0.0.1:2', 'sessions', id, '--session', 's']],
    [['--session', '127.0.0.1:2', 'requests', 'list', '--timeout', '5s']],
    [['requests', 'list', '--session', '127.0.0.1:2']],
    [['requests', '--session', '127.0.0.1:2', 'list']],
  ])('of the program stands before its command or behind it: %j', async (args) => {
    expect((await keytrail(args)).err).toContain('ECONNREFUSED 127.0.0.1:2');
  });

  it('behind a command is held to what it may be', async () => {
    expect(await keytrail(['requests', 'list', '--timeout', '5'])).toMatchObject({
      code: 2,
      err: expect.stringContaining('--timeout'),
    });
  });
});

describe('the exit code', () => {
  const id = randomUUID();
  const notThere = join(import.meta.dirname, 'not-there');
  it.each<[args: string[], words: string, environment?: Record<string, string>]>([
    [[], 'Usage: keytrail'],
    [['requests', 'list', '--state', 'lost'], '--state'],
    [['requests', 'list', '--state', 'unspecified'], '--state'],
    [['requests', 'list', '--older-than', '5'], '--older-than'],
    [['requests', 'list', '--older-than', '-5m'], '--older-than'],
    [['requests', 'list', '--limit', '0'], '--limit'],
    [['requests', 'cancel', id], '--note'],
    [['requests', 'show'], 'id'],
    [['requests', 'show', id, id], 'too many arguments'],
    [['requests', 'forget'], 'unknown command'],
    [['explain'], 'give --conversation with --user or --device, or else --trace'],
    [['explain', '--user', 'bob'], 'give --user with --conversation'],
    [['explain', '--conversation', id], 'give --conversation with --user or --device, or else --trace'],
    [['explain', '--conversation', id, '--device', 'alice'], '<user>/<device>'],
    [['explain', '--trace', 'abc'], '32 hex digits'],
    [['requests', 'list', '--conversation', 'c'], 'must be a UUID'],
    [['sessions', 'c'], 'must be a UUID'],
    [['explain', '--conversation', 'c', '--user', 'bob'], 'must be a UUID'],
    [['requests', 'show', 'r'], 'must be a UUID'],
    [['requests', 'nudge', `${id}0`], 'must be a UUID'],
    [['requests', 'cancel', 'r', '--note', 'why'], 'must be a UUID'],
    [['requests', 'replay', id.slice(1)], 'must be a UUID'],
    [['conversation', id.replaceAll('-', '')], 'must be a UUID'],
    [['explain', '--trace', 'a'.repeat(32)], 'no traces to read'],
    [['--token', 'a.token', 'requests', 'list'], 'unknown option'],
    [['requests', 'list'], 'KEYTRAIL_OPERATOR_TOKEN_FILE', { KEYTRAIL_OPERATOR_TOKEN: ' ' }],
    [['requests', 'list'], 'characters', { KEYTRAIL_OPERATOR_TOKEN: 'two\nlines' }],
    [['requests', 'list'], 'no service to ask', { KEYTRAIL_SESSION_TARGET: '' }],
    [['--token-file', notThere, 'requests', 'list'], `--token-file: the token file ${notThere} cannot be read: ENOENT`],
    [
      ['requests', 'list'],
      `KEYTRAIL_OPERATOR_TOKEN_FILE: the token file ${notThere} cannot be read: ENOENT; is it up? \`make up\` writes one`,
      { KEYTRAIL_OPERATOR_TOKEN: '', KEYTRAIL_OPERATOR_TOKEN_FILE: notThere },
    ],
    [
      ['--session', 'http://127.0.0.1:1', 'requests', 'list'],
      '--session is not a target: http://127.0.0.1:1; give host:port',
    ],
    [['requests', 'list'], 'KEYTRAIL_SESSION_TARGET is not a target: session', { KEYTRAIL_SESSION_TARGET: 'session' }],
    [['doctor'], 'KEYTRAIL_PRESENCE_TARGET is not a target: https://p:1', { KEYTRAIL_PRESENCE_TARGET: 'https://p:1' }],
  ])('of %j is 2, and stderr says why: %s', async (args, words, environment) => {
    const ran = await keytrail(args, environment);
    expect(ran).toMatchObject({ code: 2, out: '', err: expect.stringContaining(words) });
  });

  it.each<[args: string[], words: string, environment?: Record<string, string>]>([
    [
      ['requests', 'list'],
      'session at 127.0.0.1:1: no connection (ECONNREFUSED 127.0.0.1:1); is it up, and is KEYTRAIL_SESSION_TARGET right?',
    ],
    [
      ['--conversation', 'unix:/not/there', 'conversation', id],
      'conversation at unix:/not/there: no connection (ENOENT /not/there); is it up, and is --conversation right?',
    ],
    [
      ['requests', 'list'],
      'session at ipv4:127.0.0.1:1,127.0.0.1:2: no connection (ECONNREFUSED ',
      { KEYTRAIL_SESSION_TARGET: 'ipv4:127.0.0.1:1,127.0.0.1:2' },
    ],
  ])(
    'is 3 when nothing answers, and stderr says who, where, and where that was said: %j',
    async (args, words, more) => {
      const ran = await keytrail(args, more);
      expect(ran).toMatchObject({ code: 3, out: '', err: expect.stringContaining(`nothing answered: ${words}`) });
    },
  );

  it.each([
    ['keeps silent', () => {}, 'DEADLINE_EXCEEDED: the deadline passed before an answer came'],
    ['hangs up', (socket: Socket) => socket.destroy(), 'no connection; is it up'],
    [
      'speaks something else',
      (socket: Socket) => socket.end('HTTP/1.1 400 Bad Request\r\n\r\n'),
      'does not speak gRPC',
    ],
  ])('is 3 when what listens there %s, and stderr names the service', async (_, listener, words) => {
    const server = createServer(listener).listen(0, '127.0.0.1');
    await once(server, 'listening');
    const target = `127.0.0.1:${(server.address() as AddressInfo).port}`;
    const ran = await keytrail(['--session', target, '--timeout', '300ms', 'requests', 'list']);
    server.close();
    expect(ran).toMatchObject({
      code: 3,
      err: expect.stringMatching(`nothing answered: session at ${target}: .*${words}`),
    });
  });

  it.each([
    [['--help']],
    [['requests', '--help']],
    ...['list', 'show', 'nudge', 'cancel', 'replay'].map((command) => [['requests', command, '--help']]),
  ])('of %j is 0, and the help is on stdout', async (args) => {
    expect(await keytrail(args)).toMatchObject({ code: 0, err: '', out: expect.stringMatching(/^Usage: keytrail/) });
  });

  it('is told by the help', async () => {
    expect((await keytrail(['--help'])).out).toMatch(/0 ok, 1 refused .*2 usage, 3 unreachable/);
  });
});
