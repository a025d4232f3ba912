import { type Database, statement } from '@keytrail/storage';
import type { Outcome, Probe } from '../check.ts';

const readClock = statement('check_clock', 'SELECT clock_timestamp() AS now');

/** Beyond these, offers lapse too soon or too late, and tokens are refused. */
export const clockWarnMs = 500;
export const clockFailMs = 5_000;

/** Whether the clock of this process and that of its database agree, as well as a round trip lets that be known. */
export function probeClocks(db: Database): Probe {
  return {
    code: 'CLOCKS',
    async run() {
      const sentAt = Date.now();
      const [row] = await db.asItIs.query<{ now: Date }>(readClock, []);
      const receivedAt = Date.now();
      if (!row) throw new Error('the database told no time');
      return judgeClocks({ theirs: row.now.getTime(), sentAt, receivedAt });
    },
  };
}

/** Times in ms since the epoch: of the other clock, and of this one before and after asking. */
export function judgeClocks(read: { theirs: number; sentAt: number; receivedAt: number }): Outcome {
  const { theirs, sentAt, receivedAt } = read;
  // Anything between sending and receiving agrees.
  const aheadMs = theirs > receivedAt ? theirs - receivedAt : theirs < sentAt ? theirs - sentAt : 0;
  const evidence = { databaseAheadMs: aheadMs, roundTripMs: receivedAt - sentAt };
  const apart = Math.abs(aheadMs);
  if (apart <= clockWarnMs) return { status: 'ok', summary: 'the clocks of process and database agree', evidence };
  return {
    status: apart <= clockFailMs ? 'warn' : 'fail',
    summary: `the clock of the database is ${apart} ms ${aheadMs > 0 ? 'ahead of' : 'behind'} that of the process`,
    evidence,
    hint: 'synchronize the clocks of both hosts (chrony, systemd-timesyncd)',
  };
}
