import { context, DatabaseUnfit, type Logger, ROOT_CONTEXT } from '@keytrail/telemetry';
import { warnSparingly } from './warn-sparingly.ts';

export interface RoundsOptions {
  /** For the log: `the pull of revocations`. */
  readonly what: string;
  /** From the end of one round to the begin of the next. */
  readonly everyMs: number;
  readonly log: Logger;
  /** One step; true when there is more to do at once. A long one asks `proceed` in between: false once it is to stop. */
  readonly round: (proceed: () => boolean) => Promise<boolean>;
}

export interface Rounds {
  /** The next round begins now, or right after the one at hand. */
  soon(): void;
  /** Begins no further round, and resolves when the one at hand is over. */
  stop(): Promise<void>;
}

/** How often a round that found the database unfit looks again: it costs no statement. */
const unfitRestMs = 250;

/**
 * What events only make sooner: work on state, done again and again, so that a lost event costs time and nothing else. The first
 * round begins at once. A round that fails is told sparingly and tried again after the interval; one that finds the database unfit (see
 * SchemaGate) waits until that is over, and for no longer, without a word.
 */
export function startRounds({ what, everyMs, log, round }: RoundsOptions): Rounds {
  const failed = warnSparingly(log, `${what} failed; it tries again`);
  let stopping = false;
  let wanted = false;
  let wake = () => {};
  /** What the last round met, when it found the database unfit. */
  let unfit: DatabaseUnfit | undefined;
  const proceed = () => !stopping;

  async function run(): Promise<void> {
    while (!stopping) {
      wanted = false;
      unfit = undefined;
      try {
        while (!stopping && (await round(proceed)));
      } catch (error) {
        if (error instanceof DatabaseUnfit) unfit = error;
        else failed(error);
      }
      if (stopping) return;
      if (wanted) continue;
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, unfit ? Math.min(everyMs, unfitRestMs) : everyMs);
        wake = () => {
          clearTimeout(timer);
          resolve();
        };
      });
    }
  }

  // The loop belongs to no request, whoever starts it.
  const finished = context.with(ROOT_CONTEXT, run);
  return {
    soon() {
      wanted = true;
      wake();
    },
    async stop() {
      stopping = true;
      wake();
      await finished;
    },
  };
}
