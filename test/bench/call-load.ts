import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { CallCount, CallPlan } from './call-driver.ts';
import { type Round, round, run } from './load.ts';
import { WrongAnswers } from './measurement.ts';

export type { CallPlan } from './call-driver.ts';

/** One round by callers with a connection and a token each, who call one after the other. Every answer was right, or it throws. */
export function loadByCalls(
  pid: number,
  plan: CallPlan,
  folder: string,
): Promise<Round & { readonly answered: number }> {
  mkdirSync(folder, { recursive: true });
  const file = join(folder, 'call-plan.json');
  writeFileSync(file, JSON.stringify(plan));
  let answered = 0;
  return round({ pid }, async () => {
    const counted = JSON.parse(await run(process.execPath, ['test/bench/call-driver.ts', file])) as CallCount;
    if (counted.wrong.length > 0) throw new WrongAnswers(`wrong answers: ${counted.wrong.join('; ')}`);
    if (counted.answered === 0) throw new WrongAnswers('no answers');
    answered = counted.answered;
    return [counted];
  }).then((measured) => ({ ...measured, answered }));
}
