import { join } from 'node:path';
import { startProcess } from '@keytrail/local';
import type { Bench } from './bench.ts';
import { type Measured, quantile, rounded, rowOf, WrongAnswers } from './measurement.ts';

const fanout = { what: 'fanout', members: 100, devicesEach: 2, warmUps: 10, rounds: 100 } as const;
const creation = { what: 'create', members: 25, devicesEach: 2, warmUps: 5, rounds: 30 } as const;

/** From the call of SendMessage in a group of a hundred members to the notification of the last of their two hundred attached devices. */
export async function measureFanout(bench: Bench): Promise<Measured> {
  const ms = await drive(bench, fanout);
  return {
    rows: [rowOf('conversation.fanout.p99', 'ms', quantile(ms, 0.99))],
    details: { 'conversation.fanout': inShort(fanout, ms) },
  };
}

/** One call of CreateConversation with envelopes for fifty devices, sealed before: the median. */
export async function measureCreation(bench: Bench): Promise<Measured> {
  const ms = await drive(bench, creation);
  return {
    rows: [rowOf('conversation.create', 'ms', quantile(ms, 0.5))],
    details: { 'conversation.create': inShort(creation, ms) },
  };
}

async function drive(
  { constellation, folder, progress }: Bench,
  what: typeof fanout | typeof creation,
): Promise<number[]> {
  progress(`conversation.${what.what}: ${what.members} users with ${what.devicesEach} devices each`);
  const services = {
    identityKeys: constellation.grpcTarget('identity-keys'),
    conversation: constellation.grpcTarget('conversation'),
    session: constellation.grpcTarget('session'),
    presence: constellation.grpcTarget('presence'),
    issuer: constellation.issuer.url,
  };
  await using driver = await startProcess({
    name: 'conversation driver',
    args: ['test/bench/conversation-driver.ts'],
    logFile: join(folder, `conversation-${what.what}-driver.log`),
    env: { KEYTRAIL_BENCH_PLAN: JSON.stringify({ services, ...what }) },
    readyLine: (line) => line.event === 'ready',
    readyTimeoutMs: 120_000,
  });
  const line = await driver.waitForLine((each) => each.event === 'measured', { timeoutMs: 120_000 });
  const { ms } = line as unknown as { ms: number[] };
  if (ms.length !== what.rounds) throw new WrongAnswers(`${ms.length} of ${what.rounds} were measured`);
  return ms;
}

function inShort({ what: _, ...plan }: typeof fanout | typeof creation, ms: readonly number[]): object {
  const quantiles = [0, 0.5, 0.9, 0.99, 1].map((q) => [`p${q * 100}`, rounded(quantile(ms, q))]);
  return { ...plan, ...Object.fromEntries(quantiles) };
}
