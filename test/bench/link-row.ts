import { join } from 'node:path';
import { startProcess } from '@keytrail/local';
import type { Bench } from './bench.ts';
import { type Measured, quantile, rounded, rowOf, WrongAnswers } from './measurement.ts';

const conversations = 200;
const longestMs = 60_000;

/** From the attach of a device that was just linked to the last key of its user's conversations, the user's other device being online. */
export async function measureLink({ constellation, folder, progress }: Bench): Promise<Measured> {
  progress(`fulfilment.link.${conversations}: making conversations`);
  const plan = {
    services: {
      identityKeys: constellation.grpcTarget('identity-keys'),
      conversation: constellation.grpcTarget('conversation'),
      session: constellation.grpcTarget('session'),
      presence: constellation.grpcTarget('presence'),
      issuer: constellation.issuer.url,
    },
    conversations,
  };
  await using driver = await startProcess({
    name: 'link driver',
    args: ['test/bench/link-driver.ts'],
    logFile: join(folder, 'link-driver.log'),
    env: { KEYTRAIL_BENCH_PLAN: JSON.stringify(plan) },
    readyLine: (line) => line.event === 'ready',
    readyTimeoutMs: 180_000,
  });
  progress(`fulfilment.link.${conversations}: the new device attaches`);
  const line = await driver.waitForLine((each) => each.event === 'measured', { timeoutMs: longestMs });
  const { ms, missing, refused, faults } = line as unknown as {
    ms: number[];
    missing: number;
    refused: number;
    faults: string[];
  };
  if (missing > 0 || refused > 0 || faults.length > 0) {
    throw new WrongAnswers(`${missing} keys are missing, ${refused} refused: ${faults.join('; ')}`);
  }
  return {
    rows: [rowOf(`fulfilment.link.${conversations}`, 'ms', quantile(ms, 1))],
    details: {
      [`fulfilment.link.${conversations}`]: {
        keys: ms.length,
        firstMs: rounded(quantile(ms, 0)),
        medianMs: rounded(quantile(ms, 0.5)),
      },
    },
  };
}
