import { spawnSync } from 'node:child_process';
import { buildCollector, installPromtool, NoGoTools } from '../otel/go-tools.ts';

// Rules, their tests, and that the collector understands its configuration. Skipped, with the reason, without Go.
try {
  const promtool = installPromtool();
  const collector = buildCollector();
  const commands = [
    [promtool, 'check', 'rules', 'recording.yaml', 'alerts.yaml'],
    [promtool, 'test', 'rules', 'alerts.test.yaml'],
    [collector, 'validate', '--config', '../otel/collector.yaml'],
  ];
  let failed = 0;
  for (const [command = '', ...args] of commands) {
    const ran = spawnSync(command, args, { cwd: import.meta.dirname, encoding: 'utf8' });
    const what = args.join(' ');
    if (ran.status === 0) console.log(`check-sre: ok   ${what}`);
    else {
      failed += 1;
      console.log(`check-sre: FAIL ${what}\n${ran.stdout}${ran.stderr}`);
    }
  }
  process.exit(failed === 0 ? 0 : 1);
} catch (error) {
  if (!(error instanceof NoGoTools)) throw error;
  console.log(`check-sre: skip: ${error.message}`);
}
