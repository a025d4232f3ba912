import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { run } from '../src/program.ts';

async function keytrail(...args: string[]) {
  const written = { out: '', err: '' };
  const code = await run(args, {
    environment: { KEYTRAIL_SESSION_TARGET: '127.0.0.1:1', KEYTRAIL_OPERATOR_TOKEN: 'a.token' },
    out(text) {
      written.out += text;
    },
    say(text) {
      written.err += text;
    },
  });
  return { code, ...written };
}

describe('what is wrong with a command line', () => {
  it.each([
    [['--jsno'], "unknown option '--jsno'", 'keytrail --help'],
    [['trcae'], "unknown command 'trcae'", 'keytrail --help'],
    [['trace', '--htlm', 'x'], "unknown option '--htlm'", 'keytrail trace --help'],
    [['requests', 'list', '--limit', '0'], 'must be from 1 to 10000', 'keytrail requests list --help'],
    [['requests', 'forget'], "unknown command 'forget'", 'keytrail requests --help'],
  ])('of %j is told at the end, with one line that names the help', async (args, words, help) => {
    const { code, err } = await keytrail(...args);
    const lines = err
      .trimEnd()
      .split('\n')
      .filter((line) => !line.startsWith('(Did you mean'));
    expect(code).toBe(2);
    expect(lines).toEqual([expect.stringContaining(words), `(${help} says what can be given)`]);
  });

  it.each(['0af7651916cd43dd8448eb211c80319c', '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01'])(
    'says to put the id first when --wait took it: %s',
    async (id) => {
      const ran = await keytrail('trace', '--wait', id);
      expect(ran).toMatchObject({ code: 2, err: expect.stringContaining('put the id first, as trace <id> --wait') });
    },
  );
});

it('keytrail requests alone is the list, with the options of the list', async () => {
  const named = await keytrail('requests', 'list', '--state', 'lost');
  expect(named).toMatchObject({ code: 2, err: expect.stringContaining('--state') });
  expect(await keytrail('requests', '--state', 'lost')).toEqual(named);
  // There is no such service: it was asked.
  for (const args of [['requests'], ['requests', '--state', 'any', '--limit', '5'], ['requests', '--json']])
    expect(await keytrail(...args)).toMatchObject({ code: 3, err: expect.stringContaining('127.0.0.1:1') });
});

it('keytrail --version is the version and the build, as rows and answers tell theirs', async () => {
  const { version } = JSON.parse(readFileSync(join(import.meta.dirname, '../../../package.json'), 'utf8'));
  const { code, out, err } = await keytrail('--version');
  expect({ code, err }).toEqual({ code: 0, err: '' });
  expect(out).toMatch(new RegExp(`^keytrail ${version}, build ${version}\\+[0-9a-f]{12}\n$`));
});
