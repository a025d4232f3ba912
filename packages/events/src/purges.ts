import type { Logger } from '@keytrail/telemetry';
import { startRounds } from './rounds.ts';

export interface PurgesOptions {
  /** From the end of one purge to the begin of the next. */
  readonly everyMs: number;
  readonly log: Logger;
  /** By what they delete, for the log. Each deletes at most so many rows that are past their retention, and returns how many. */
  readonly purges: Readonly<Record<string, (most: number) => Promise<number>>>;
}

const rowsAtOnce = 10_000;

/**
 * Deletes what is past its retention, in batches until none is full: however much came in an interval goes in the next one. Each purge is
 * on its own, so that one that fails keeps back no other. Returns how to stop, which waits for the batches at hand.
 */
export function startPurges({ everyMs, log, purges }: PurgesOptions): { stop(): Promise<void> } {
  const running = Object.entries(purges).map(([what, purge]) =>
    startRounds({
      what: `the purge of ${what}`,
      everyMs,
      log,
      round: async () => (await purge(rowsAtOnce)) >= rowsAtOnce,
    }),
  );
  return {
    async stop() {
      await Promise.all(running.map((rounds) => rounds.stop()));
    },
  };
}
