import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { startConstellation } from '@keytrail/local/constellation';
import { upEnvironment, writeOperatorToken } from '@keytrail/local/up-environment';
import { expect, test } from 'vitest';
import { checkout } from './files.ts';

interface Example {
  readonly needs: string | undefined;
  readonly says: readonly string[];
  readonly commands: string;
}

/** The blocks that a document marks with `<!-- runs[ with <program>][, and says: <words>] -->`. */
function examplesOf(document: string): Example[] {
  const marked = /<!-- runs(?: with (?<needs>\w+))?(?:, and says: (?<says>.*?))? -->\n```bash\n(?<commands>.*?)```/gs;
  return [...readFileSync(join(checkout, document), 'utf8').matchAll(marked)].map(({ groups = {} }) => ({
    needs: groups.needs,
    says: groups.says?.split(' ') ?? [],
    commands: groups.commands ?? '',
  }));
}

function isOnPath(program: string): boolean {
  return spawnSync('sh', ['-c', `command -v ${program}`]).status === 0;
}

test('the examples of the README, and those that it leads to, do what it says, in its order', async () => {
  const examples = ['README.md', 'docs/examples/README.md'].flatMap(examplesOf);
  expect(examples.length).toBeGreaterThan(5);
  mkdirSync(join(checkout, '.local'), { recursive: true });
  const folder = mkdtempSync(join(checkout, '.local', 'readme-'));
  await using constellation = await startConstellation({ name: 'readme', folder: join(folder, 'logs') });
  try {
    const operatorTokenFile = join(folder, 'operator.token');
    await writeOperatorToken(constellation.issuer.url, operatorTokenFile);
    writeFileSync(
      join(folder, 'up.env'),
      upEnvironment({
        services: constellation.replicas,
        issuer: constellation.issuer.url,
        traces: constellation.traces.url,
        operatorTokenFile,
        databaseUrls: constellation.databaseUrls,
      }),
    );
    const runnable = examples.filter(({ needs }) => needs === undefined || isOnPath(needs));
    const script = runnable.map(({ commands }, index) => `{\n${commands}} > ${folder}/${index}.out 2>&1\n`).join('');
    writeFileSync(
      join(folder, 'readme.sh'),
      `set -eu -o pipefail\ntrap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n${script}`
        .replaceAll('.local/up.env', `${folder}/up.env`)
        .replaceAll('.local/examples', `${folder}/examples`),
    );
    const bash = spawn('bash', [join(folder, 'readme.sh')], {
      cwd: checkout,
      stdio: 'ignore',
      env: { PATH: process.env.PATH, HOME: process.env.HOME, KEYTRAIL_SKIP_INSTALL: '1' },
    });
    const [code] = await once(bash, 'exit');
    const outputs = runnable.map((_, index) => read(join(folder, `${index}.out`)));
    expect(code, outputs.join('\n')).toBe(0);
    for (const [index, { says }] of runnable.entries()) {
      for (const word of says) expect(outputs[index]).toContain(word);
    }
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}, 600_000);

function read(file: string): string {
  try {
    return readFileSync(file, 'utf8');
  } catch {
    return '';
  }
}
