import { spawnSync } from 'node:child_process';
import { NotAvailable } from '../local/src/servers/server.ts';
import { buildCollector } from '../otel/collector-program.ts';
import { findPromtool } from './promtool.ts';
import { type Checked, summaryOf } from './summary.ts';

// Rules, their tests, and that the collector understands its configuration. What has no program here is not checked, and the end says so.
const groups = [
  {
    program: findPromtool,
    runs: [
      ['check', 'rules', 'recording.yaml', 'alerts.yaml'],
      ['test', 'rules', 'alerts.test.yaml'],
      ['test', 'rules', 'alerts-over-days.test.yaml'],
    ],
  },
  { program: buildCollector, runs: [['validate', '--config', '../otel/collector.yaml']] },
];

const all: Checked[] = [];
for (const { program, runs } of groups) {
  try {
    const path = await program();
    for (const args of runs) {
      const from = performance.now();
      const ran = spawnSync(path, args, { cwd: import.meta.dirname, encoding: 'utf8' });
      const what = `${args.join(' ')} (${((performance.now() - from) / 1000).toFixed(1)} s)`;
      const ended = ran.status === 0 ? 'ok' : 'failed';
      all.push({ what: args.join(' '), ended });
      console.log(ended === 'ok' ? `check-sre: ok   ${what}` : `check-sre: FAIL ${what}\n${ran.stdout}${ran.stderr}`);
    }
  } catch (error) {
    if (!(error instanceof NotAvailable)) throw error;
    for (const args of runs) {
      all.push({ what: args.join(' '), ended: 'not checked' });
      console.log(`check-sre: skip ${args.join(' ')}: ${error.message}`);
    }
  }
}
console.log(`check-sre: ${summaryOf(all)}`);
process.exit(all.some(({ ended }) => ended === 'failed') ? 1 : 0);
