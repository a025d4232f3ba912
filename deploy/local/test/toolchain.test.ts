import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { afterAll, describe, expect, test } from 'vitest';
import { exclusively } from '../src/exclusively.ts';
import { isOlder, versionIn } from '../src/servers/version.ts';
import { parseLines, parseStanzas } from '../src/toolchain/apt.ts';

const folder = mkdtempSync(`${tmpdir()}/keytrail-test-`);
afterAll(() => rmSync(folder, { recursive: true }));

describe('apt sources', () => {
  test('of the newer format are read, several suites at once, without those that are switched off', () => {
    const text = `# a comment
Types: deb deb-src
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
# a comment between
Components: main contrib
Signed-By: /usr/share/keyrings/archive.gpg

Types: deb
URIs: http://mirror.example/security
Suites: bookworm-security
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc

Types: deb
Enabled: no
URIs: http://mirror.example/other
Suites: bookworm
Components: main

Types: deb-src
URIs: http://mirror.example/debian
Suites: bookworm
Components: main
`;
    const debian = { uri: 'http://mirror.example/debian', components: ['main', 'contrib'] };
    const signedBy = '/usr/share/keyrings/archive.gpg';
    expect(parseStanzas(text)).toEqual([
      { ...debian, suite: 'bookworm', signedBy },
      { ...debian, suite: 'bookworm-updates', signedBy },
      {
        uri: 'http://mirror.example/security',
        suite: 'bookworm-security',
        components: ['main'],
        signedBy: '-----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc',
      },
    ]);
  });

  test('of the older format are read, with and without options', () => {
    const text = `# deb http://mirror.example/ubuntu noble main
deb http://mirror.example/ubuntu noble main universe # ours
deb-src http://mirror.example/ubuntu noble main
deb [arch=amd64 signed-by=/usr/share/keyrings/archive.gpg] https://mirror.example/ubuntu noble-security main
`;
    expect(parseLines(text)).toEqual([
      { uri: 'http://mirror.example/ubuntu', suite: 'noble', components: ['main', 'universe'], signedBy: undefined },
      {
        uri: 'https://mirror.example/ubuntu',
        suite: 'noble-security',
        components: ['main'],
        signedBy: '/usr/share/keyrings/archive.gpg',
      },
    ]);
  });
});

describe('versions', () => {
  test.each([
    ['postgres (PostgreSQL) 18.4', '18.4'],
    ['Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.2.1', '7.0.15'],
    ['nats-server: v2.10.27', '2.10.27'],
  ])('are found in %j', (text, version) => expect(versionIn(text)).toBe(version));

  test.each([
    ['2.9.10', '2.10.4', true],
    ['2.10.4', '2.10.4', false],
    ['2.10', '2.10.4', true],
    ['18.4', '15', false],
    ['14.22', '15', true],
  ])('%s is older than %s: %s', (version, than, older) => expect(isOlder(version, than)).toBe(older));
});

describe('work that excludes itself', () => {
  test('runs one at a time, and takes over from a holder that died', async () => {
    const lock = `${folder}/lock`;
    const log = `${folder}/log`;
    writeFileSync(log, '');
    const work = (name: string) =>
      exclusively(lock, async () => {
        writeFileSync(log, `${name}+`, { flag: 'a' });
        await new Promise((resolve) => setTimeout(resolve, 30));
        writeFileSync(log, `${name}-`, { flag: 'a' });
      });
    const holding = exclusively(lock, async () => {
      // No process has this pid: Linux ends at 4,194,304.
      writeFileSync(`${lock}/pid`, '99999999');
      await Promise.all([work('a'), work('b')]);
    });
    await holding;
    expect(['a+a-b+b-', 'b+b-a+a-']).toContain(readFileSync(log, 'utf8'));
    expect(existsSync(lock)).toBe(false);
  });
});
