import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { afterEach, expect, test } from 'vitest';
import { digestSources, readRevision } from '../src/build.ts';
import { buildIdentity } from '../src/index.ts';

const folders: string[] = [];
afterEach(() => {
  for (const folder of folders.splice(0)) rmSync(folder, { recursive: true });
});

function tree(files: Record<string, string>): string {
  const folder = mkdtempSync(join(tmpdir(), 'keytrail-build-'));
  folders.push(folder);
  for (const [path, content] of Object.entries(files)) {
    mkdirSync(dirname(join(folder, path)), { recursive: true });
    writeFileSync(join(folder, path), content);
  }
  return folder;
}

const commit = '8f0a1b2c3d4e5f60718293a4b5c6d7e8f9012345';

test('the revision is read from a branch, a packed branch, a detached head and a worktree', () => {
  const branch = { '.git/HEAD': 'ref: refs/heads/main\n' };
  expect(readRevision(tree({ ...branch, '.git/refs/heads/main': `${commit}\n` }))).toBe(commit);
  expect(readRevision(tree({ ...branch, '.git/packed-refs': `# pack-refs\n${commit} refs/heads/main\n` }))).toBe(
    commit,
  );
  expect(readRevision(tree({ '.git/HEAD': `${commit}\n` }))).toBe(commit);
  const worktree = {
    '.git': 'gitdir: main/.git/worktrees/w\n',
    'main/.git/worktrees/w/HEAD': 'ref: refs/heads/w\n',
    'main/.git/worktrees/w/commondir': '../..\n',
    'main/.git/refs/heads/w': `${commit}\n`,
  };
  expect(readRevision(tree(worktree))).toBe(commit);
});

test('the revision is unknown without a repository', () => {
  expect(readRevision(tree({ 'package.json': '{}' }))).toBe('unknown');
});

test('the digest follows names and contents of sources, of nothing else', () => {
  const files = { 'services/session/src/main.ts': 'a', 'packages/rpc/src/index.ts': 'b' };
  const digest = digestSources('session', tree(files));
  expect(digestSources('session', tree(files))).toBe(digest);
  const besides = {
    'packages/rpc/test/a.test.ts': 'x',
    'packages/rpc/node_modules/y/index.js': 'y',
    'services/presence/src/main.ts': 'z',
  };
  expect(digestSources('session', tree({ ...files, ...besides }))).toBe(digest);
  expect(digestSources('session', tree({ ...files, 'packages/rpc/src/index.ts': 'c' }))).not.toBe(digest);
  expect(digestSources('session', tree({ ...files, 'packages/rpc/src/old.ts': '' }))).not.toBe(digest);
});

test('a process states one identity', () => {
  const identity = buildIdentity('session');
  expect(buildIdentity('session')).toBe(identity);
  expect(identity).toMatchObject({ service: 'session', pid: process.pid, nodeVersion: process.version });
  expect(identity.sourcesDigest).toMatch(/^[0-9a-f]{64}$/);
  expect(identity.writerBuild).toMatch(/^\d+\.\d+\.\d+\+[0-9a-f]{12}$/);
});
