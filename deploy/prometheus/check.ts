import { spawnSync } from 'node:child_process';
import { NotAvailable } from '../local/src/servers/server.ts';
import { buildCollector } from '../otel/collector-program.ts';
import { findPromtool } from './promtool.ts';

// Rules, their tests, and that the collector understands its configuration. What has no program here is skipped, with the reason.
const groups = [
  {
    program: findPromtool,
    runs: [
      ['check', 'rules', 'recording.yaml', 'alerts.yaml'],
      ['test', 'rules', 'alerts.test.yaml'],
    ],
  },
  { program: buildCollector, runs: [['validate', '--config', '../otel/collector.yaml']] },
];

let failed = 0;
for (const { program, runs } of groups) {
  try {
    const path = await program();
    for (const args of runs) {
      const from = performance.now();
      const ran = spawnSync(path, args, { cwd: import.meta.dirname, encoding: 'utf8' });
      const what = `${args.join(' ')} (${((performance.now() - from) / 1000).toFixed(1)} s)`;
      if (ran.status === 0) console.log(`check-sre: ok   ${what}`);
      else {
        failed += 1;
        console.log(`check-sre: FAIL ${what}\n${ran.stdout}${ran.stderr}`);
      }
    }
  } catch (error) {
    if (!(error instanceof NotAvailable)) throw error;
    for (const args of runs) console.log(`check-sre: skip ${args.join(' ')}: ${error.message}`);
  }
}
process.exit(failed === 0 ? 0 : 1);
