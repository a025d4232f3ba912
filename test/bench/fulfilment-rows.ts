import { join } from 'node:path';
import { startProcess } from '@keytrail/local';
import type { Bench } from './bench.ts';
import { type Measured, quantile, rounded, rowOf, WrongAnswers } from './measurement.ts';
import { processorSeconds, processorSecondsOfFamily } from './processor-time.ts';

// Until the compiler has seen enough: the first seconds cost twice what the later ones do.
const warmUpSeconds = 12;
const seconds = 20;

/** From the call of RequestKey to the opened key, with a holder online, at a steady rate that does not wait for answers. */
export async function measureFulfilment({ constellation, folder, progress, perSecond }: Bench): Promise<Measured> {
  progress('fulfilment.online: making devices, conversations and streams');
  const plan = {
    services: {
      identityKeys: constellation.grpcTarget('identity-keys'),
      conversation: constellation.grpcTarget('conversation'),
      session: constellation.grpcTarget('session'),
      presence: constellation.grpcTarget('presence'),
      issuer: constellation.issuer.url,
    },
    pairs: (warmUpSeconds + seconds) * perSecond,
    perSecond,
    warmUpSeconds,
    seconds,
  };
  await using driver = await startProcess({
    name: 'fulfilment driver',
    args: ['test/bench/fulfilment-driver.ts'],
    logFile: join(folder, 'fulfilment-driver.log'),
    env: { KEYTRAIL_BENCH_PLAN: JSON.stringify(plan) },
    readyLine: (line) => line.event === 'ready',
    readyTimeoutMs: 180_000,
  });
  progress(`fulfilment.online: ${perSecond} key requests per second for ${seconds} s`);
  await driver.waitForLine((each) => each.event === 'warm', { timeoutMs: 120_000 });
  const before = processorTimes(constellation, driver.pid);
  const line = await driver.waitForLine((each) => each.event === 'measured', { timeoutMs: 120_000 });
  const after = processorTimes(constellation, driver.pid);
  const { ms, lateMs, faults } = line as unknown as { ms: number[]; lateMs: number; faults: string[] };
  if (ms.length < seconds * perSecond) throw new WrongAnswers(`only ${ms.length} keys came: ${faults.join('; ')}`);
  if (faults.length > 0) throw new WrongAnswers(`${ms.length} keys came, with faults: ${faults.join('; ')}`);
  return {
    rows: [
      rowOf('fulfilment.online.p50', 'ms', quantile(ms, 0.5)),
      rowOf('fulfilment.online.p99', 'ms', quantile(ms, 0.99)),
    ],
    details: {
      'fulfilment.online': {
        requests: ms.length,
        perSecond,
        ...Object.fromEntries([0, 0.1, 0.5, 0.9, 0.95, 0.99, 1].map((q) => [`p${q * 100}`, rounded(quantile(ms, q))])),
        // Milliseconds of processor time for each request, by process.
        processorMsEach: Object.fromEntries(
          Object.entries(after).map(([name, used]) => [
            name,
            rounded(((used - (before[name] ?? 0)) * 1000) / ms.length),
          ]),
        ),
        driverLateMs: rounded(lateMs),
      },
    },
  };
}

function processorTimes(
  { replicas, nats, redis, postgres }: Bench['constellation'],
  driver: number,
): Record<string, number> {
  const times = {
    ...Object.fromEntries(replicas.map((replica) => [replica.service, processorSeconds(replica.process.pid)])),
    nats: processorSeconds(nats.pid ?? 0),
    redis: processorSeconds(redis.pid ?? 0),
    postgres: processorSecondsOfFamily(postgres.pid ?? 0),
    driver: processorSeconds(driver),
  };
  return times;
}
