import { mkdirSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { parseArgs } from 'node:util';
import { readSettings } from '@keytrail/settings';
import { startTelemetry, telemetrySettings } from '@keytrail/telemetry';
import type { TraceTree } from '@keytrail/traces';
import { checkoutFolder } from '../checkout.ts';
import { startConstellation } from '../constellation.ts';
import { firstMessage } from '../demo/first-message.ts';
import { missAndCure } from '../demo/miss-and-cure.ts';
import { nobodyOnline } from '../demo/nobody-online.ts';
import { rotation } from '../demo/rotation.ts';
import { createStage } from '../demo/stage.ts';
import { theOldBug } from '../demo/the-old-bug.ts';
import { theTrace } from '../demo/the-trace.ts';

const { values } = parseArgs({ options: { json: { type: 'boolean' }, help: { type: 'boolean', short: 'h' } } });
if (values.help) {
  console.log(`Usage: make demo

The main job on the real services: two users, three devices, a miss, and its cure. Starts everything it needs on free ports and leaves
nothing running. Writes .local/demo.json: {"ok", "steps": [{"name", "ok", "ms"}], "trace": {"id", "services", "spans", "orphans"}}.
  --json   print that JSON on stdout, and everything else on stderr
Exit codes: 0 all of it is true, 1 a step failed or something could not be started.`);
  process.exit(0);
}

const out = values.json ? console.error : console.log;
const steps: { name: string; ok: boolean; ms: number }[] = [];
let trace: { id: string; services: string[]; spans: number; orphans: number } | undefined;

async function step<T>(name: string, run: () => Promise<T>): Promise<T> {
  const from = performance.now();
  out(`\n${steps.length}. ${name}`);
  try {
    const result = await run();
    const ms = Math.round(performance.now() - from);
    steps.push({ name, ok: true, ms });
    out(`   (${ms} ms)`);
    return result;
  } catch (error) {
    steps.push({ name, ok: false, ms: Math.round(performance.now() - from) });
    throw error;
  }
}

const say = (line: string) => out(`   ${line}`);
let failure: unknown;
let stop = async () => {};
try {
  const constellation = await step('Start PostgreSQL, Redis, NATS and the four services', () =>
    startConstellation({ name: 'demo', progress: say }),
  );
  // The devices are spans of the same traces, so that the tree begins where the user waits.
  const telemetry = startTelemetry({
    service: 'devices',
    config: readSettings(telemetrySettings, {
      KEYTRAIL_ENVIRONMENT: 'development',
      KEYTRAIL_LOG_LEVEL: 'silent',
      KEYTRAIL_OTLP_URL: constellation.traces.url,
      KEYTRAIL_TRACE_RATIO: '1',
    }),
  });
  const stage = createStage(constellation, say);
  stop = async () => {
    await stage.close();
    await telemetry.shutdown();
    await constellation.stop();
  };

  const opening = await step('Two users register; a conversation, a message, decrypted', () => firstMessage(stage));
  const cure = await step('A second device of bob: a miss that says why, and its cure', () =>
    missAndCure(stage, opening),
  );
  const cast = { ...opening, ...cure };
  const later = await step('Nobody is online: the request waits, a holder attaches, the key is delivered', () =>
    nobodyOnline(stage, cast),
  );
  await step('The session is rotated; a concurrent rotation loses cleanly', () =>
    rotation(stage, { ...cast, ...later }),
  );
  await step('The old bug, tried on purpose', () => theOldBug(stage, cast));
  const tree: TraceTree = await step('The trace of step 2, hop by hop', () => theTrace(stage, cure.traceId));
  trace = { id: tree.id, services: [...tree.services], spans: tree.spans.length, orphans: tree.orphans.length };
} catch (error) {
  failure = error;
  out(`\n   ✗ ${error instanceof Error ? (error.stack ?? error.message) : error}`);
} finally {
  await stop();
}

const ok = failure === undefined && steps.every((each) => each.ok) && trace?.orphans === 0;
const report = { ok, steps, trace: trace ?? { id: '', services: [], spans: 0, orphans: 0 } };
const file = join(checkoutFolder, '.local', 'demo.json');
mkdirSync(dirname(file), { recursive: true });
writeFileSync(file, `${JSON.stringify(report, null, 2)}\n`);
if (values.json) console.log(JSON.stringify(report));
out(
  ok
    ? `\nAll of it is true. Written to .local/demo.json; nothing is left running.

What to try next:
  make up      keep it running, with a token issuer; then the curl examples of the README
  make test    all tests, against real servers
  make guards  break the code on purpose and see the tests notice
  make bench   how fast it is`
    : '\nThe demo failed; the logs of the services are in .local/demo/.',
);
process.exit(ok ? 0 : 1);
