import { spawnSync } from 'node:child_process';
import { join } from 'node:path';

// Lists, as file:line, what a tracked text must not hold. Exit 0 when there is nothing, 1 when there is, 2 when git fails.
const root = join(import.meta.dirname, '..');

const rules: readonly { readonly what: string; readonly grep: readonly string[] }[] = [
  {
    what: 'a path of the machine that it was written on',
    grep: ['-E', '-e', '(^|[^A-Za-z0-9_.~:/}-])/(home|root|Users|work|mnt|tmp|var/folders)/[A-Za-z0-9_.-]+'],
  },
  {
    what: 'the host of a package registry',
    grep: [
      '-iE',
      '-e',
      '(^|[^a-z0-9_.-])(registry|proxy|mirror|mirrors|artifactory|nexus)[a-z0-9-]*[.][a-z0-9-]+[.](org|com|net|io|dev)',
      '-e',
      '(npmjs|pypi|pythonhosted|debian|ubuntu|ghcr|quay|docker)[.](org|com|net|io)',
    ],
  },
  { what: 'work that was left for later', grep: ['-wE', '-e', 'TODO|FIXME'] },
];

const excluded = [
  'LICENSE',
  'package-lock.json',
  'bin/check-wording.ts',
  'packages/contracts/src/gen',
  'services/*/src/store/generated',
].map((path) => `:(exclude)${path}`);

let found = 0;
for (const { what, grep } of rules) {
  const result = spawnSync('git', ['grep', '-nI', ...grep, '--', '.', ...excluded], { cwd: root, encoding: 'utf8' });
  if (result.status !== 0 && result.status !== 1) {
    console.error(`check-wording: ${result.stderr || result.error?.message}`);
    process.exit(2);
  }
  for (const line of result.stdout.split('\n').filter((each) => each !== '')) {
    found += 1;
    console.log(`${line.replace(/^([^:]*:\d+):/, '$1: ')}  <- ${what}`);
  }
}
process.exit(found === 0 ? 0 : 1);
