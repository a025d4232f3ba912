import { randomUUID } from 'node:crypto';
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
  it.each<[args: string[], words: string, environment?: Record<string, string>]>([
    [[], 'Usage: keytrail'],
    [['requests'], 'Usage: keytrail requests'],
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
    [['explain', '--trace', 'a'.repeat(32)], 'no traces to read'],
    [['--token', 'a.token', 'requests', 'list'], 'unknown option'],
    [['requests', 'list'], 'no token', { KEYTRAIL_OPERATOR_TOKEN: ' ' }],
    [['requests', 'list'], 'characters', { KEYTRAIL_OPERATOR_TOKEN: 'two\nlines' }],
    [['requests', 'list'], 'no service to ask', { KEYTRAIL_SESSION_TARGET: '' }],
    [['--token-file', join(import.meta.dirname, 'not-there'), 'requests', 'list'], 'ENOENT'],
  ])('of %j is 2, and stderr says why: %s', async (args, words, environment) => {
    const ran = await keytrail(args, environment);
    expect(ran).toMatchObject({ code: 2, out: '', err: expect.stringContaining(words) });
  });

  it('is 3 when nothing answers', async () => {
    const ran = await keytrail(['requests', 'list']);
    expect(ran).toMatchObject({ code: 3, out: '', err: expect.stringContaining('nothing answered') });
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
