import { readFileSync } from 'node:fs';
import { join, relative } from 'node:path';
import { run } from '@keytrail/cli';
import { expect, test } from 'vitest';
import { checkout, filesBelow } from './files.ts';

const folders = ['docs/runbooks', 'docs/checks', 'docs/findings', 'docs/reasons'];

const traceId = '0af7651916cd43dd8448eb211c80319c';
const uuid = '0b6b1f0e-52a2-4a39-9a3a-3d2f5d9b7f11';
const values: Readonly<Record<string, string>> = {
  conversation: uuid,
  session: 'session_1',
  user: 'alice',
  'user/device': 'alice/phone',
  'trace id': traceId,
  service: 'session',
  why: 'repaired',
};
const ids: Readonly<Record<string, string>> = { requests: uuid, 'dead-letters': '7', trace: traceId };

/** What follows `keytrail` where a page says it with more than the name of a command: a line of its own, or within a sentence. */
function commandsOf(page: string): string[] {
  const said = [...page.matchAll(/^ *bin\/keytrail (.+)|`(?:bin\/)?keytrail ([^`\n]+)`/gm)];
  return said.map(([, line, words]) => (line ?? words ?? '').replace(/ +# .*/, '').trim()).filter(isMoreThanName);
}

const isMoreThanName = (command: string) => command === 'doctor' || command.includes(' ');

/** A command line with every placeholder filled in, also one that goes on, as in `<trace id of a miss>`. */
function filledIn(command: string): string[] {
  const [name = ''] = command.split(' ');
  return command
    .replace(/<([^>]+)>/g, (placeholder, what: string) => {
      const value = what === 'id' ? ids[name] : values[what.replace(/ of .*/, '')];
      if (value === undefined) throw new Error(`nothing is known to put in the place of ${placeholder}`);
      return value;
    })
    .split(/ +/);
}

/** Runs it with everything that it may need named, and nothing there. */
async function endOf(args: readonly string[]) {
  let said = '';
  const nowhere = '127.0.0.1:1';
  const database = `postgres://nobody@${nowhere}/none`;
  const services = ['IDENTITY_KEYS', 'SESSION', 'CONVERSATION'];
  const code = await run(args, {
    environment: {
      KEYTRAIL_OPERATOR_TOKEN: 'a.token',
      KEYTRAIL_TRACE_BACKEND: `http://${nowhere}`,
      ...Object.fromEntries([...services, 'PRESENCE'].map((service) => [`KEYTRAIL_${service}_TARGET`, nowhere])),
      ...Object.fromEntries(services.map((service) => [`KEYTRAIL_DATABASE_URL_${service}`, database])),
    },
    out: () => {},
    say(text) {
      said += text;
    },
  });
  return { code, said };
}

const pages = folders.flatMap((folder) => filesBelow(join(checkout, folder), '.md'));
const commands = new Map(
  pages.flatMap((path) =>
    commandsOf(readFileSync(path, 'utf8')).map((command) => [command, relative(checkout, path)] as const),
  ),
);

test('no command that a page says to run is refused for its usage', async () => {
  expect(commands.size).toBeGreaterThan(25);
  const ended = [...commands].map(async ([command, page]) => {
    const { code, said } = await endOf(filledIn(command));
    return code === 2 ? [`${page}: ${command}: ${said}`] : [];
  });
  const refused = (await Promise.all(ended)).flat();
  expect(refused).toEqual([]);
});

test('one that is refused for its usage is found, in a line of its own and in a sentence', async () => {
  const page =
    '    bin/keytrail dead-letters list   # whose?\n\nThen `keytrail requests nudge` has it looked at, see `keytrail explain`.';
  expect(commandsOf(page)).toEqual(['dead-letters list', 'requests nudge']);
  for (const command of commandsOf(page)) expect(await endOf(filledIn(command))).toMatchObject({ code: 2 });
  expect(await endOf(filledIn('doctor --only NO_SUCH_CHECK'))).toMatchObject({ code: 2 });
  expect(await endOf(filledIn('trace <trace id of a miss>'))).toMatchObject({ code: 3 });
  expect(() => filledIn('trace <miss>')).toThrow('<miss>');
});
