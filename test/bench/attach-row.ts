import { join } from 'node:path';
import { startProcess } from '@keytrail/local';
import type { Bench } from './bench.ts';
import { type Measured, quantile, rounded, rowOf, WrongAnswers } from './measurement.ts';

const rounds = 20;

/** From the attach of the first device that has it to the opened key of a device that waits for it, both with the SDK. */
export async function measureAttach({ constellation, folder, progress }: Bench): Promise<Measured> {
  progress(`fulfilment.attach: making ${rounds} keys that are waited for`);
  const plan = {
    services: {
      identityKeys: constellation.grpcTarget('identity-keys'),
      conversation: constellation.grpcTarget('conversation'),
      session: constellation.grpcTarget('session'),
      presence: constellation.grpcTarget('presence'),
      issuer: constellation.issuer.url,
    },
    rounds,
  };
  await using driver = await startProcess({
    name: 'attach driver',
    args: ['test/bench/attach-driver.ts'],
    logFile: join(folder, 'attach-driver.log'),
    env: { KEYTRAIL_BENCH_PLAN: JSON.stringify(plan) },
    readyLine: (line) => line.event === 'ready',
    readyTimeoutMs: 180_000,
  });
  progress('fulfilment.attach: the holders attach, one after the other');
  const line = await driver.waitForLine((each) => each.event === 'measured', { timeoutMs: 60_000 });
  const { ms, faults } = line as unknown as { ms: number[]; faults: string[] };
  if (ms.length < rounds || faults.length > 0) throw new WrongAnswers(`${ms.length} keys came: ${faults.join('; ')}`);
  return {
    rows: [rowOf('fulfilment.attach', 'ms', quantile(ms, 1))],
    details: {
      'fulfilment.attach': {
        keys: ms.length,
        fastestMs: rounded(quantile(ms, 0)),
        medianMs: rounded(quantile(ms, 0.5)),
      },
    },
  };
}
