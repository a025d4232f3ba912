import { nobodyTold, type Place } from '../finding.ts';
import { type Asked, placeOf } from '../processes.ts';

export const clockWarnMs = 500;
export const clockFailMs = 5_000;

/** CLOCKS over the fleet: the processes' clocks against each other, less what the way there and back may hide. */
export function judgeClocks(asked: readonly Asked[]): Omit<Place, 'where'> {
  const known = asked.flatMap(({ clock, ...process }) => (clock ? [{ ...clock, where: placeOf(process) }] : []));
  if (known.length === 0) return nobodyTold('time');
  const first = known.reduce((one, other) =>
    other.offsetMs + other.withinMs < one.offsetMs + one.withinMs ? other : one,
  );
  const last = known.reduce((one, other) =>
    other.offsetMs - other.withinMs > one.offsetMs - one.withinMs ? other : one,
  );
  const apartMs = Math.max(0, Math.round(last.offsetMs - last.withinMs - (first.offsetMs + first.withinMs)));
  const evidence = { processes: known.length, apartMs };
  if (apartMs < clockWarnMs)
    return {
      status: 'ok',
      summary: `the clocks of ${known.length} processes agree within ${Math.max(apartMs, 1)} ms, as far as can be seen`,
      evidence,
    };
  return {
    status: apartMs < clockFailMs ? 'warn' : 'fail',
    summary: `${last.where} is ${apartMs} ms ahead of ${first.where}`,
    evidence,
    hint: 'let machines follow one time server (chrony, systemd-timesyncd): offers and tokens run out by these clocks',
  };
}
