import { type GaugeName, type Logger, type Observe, report } from '@keytrail/telemetry';
import { startRounds } from './rounds.ts';

export interface GaugesOptions {
  /** For the log: `the figures of the outbox`. */
  readonly what: string;
  readonly gauges: readonly GaugeName[];
  readonly everyMs: number;
  readonly log: Logger;
  /** Finds out once, by one cheap statement or call, and tells what it found. */
  readonly read: () => Promise<(observe: Observe) => void>;
}

export interface Gauges {
  /** Resolves once there is something to tell. */
  readonly looked: Promise<void>;
  stop(): Promise<void>;
}

/**
 * Gauges of a state that somebody has to be asked for. They are asked once per interval and never because of an export. What was found three
 * intervals ago is no longer told: no figure is better than an old one, and alerts see that it is missing.
 */
export function startGauges({ what, gauges, everyMs, log, read }: GaugesOptions): Gauges {
  const { promise: looked, resolve } = Promise.withResolvers<void>();
  let found: { readonly tell: (observe: Observe) => void; readonly at: number } | undefined;
  const stopReporting = report(gauges, (observe) => {
    if (found && performance.now() - found.at < everyMs * 3) found.tell(observe);
  });
  const rounds = startRounds({
    what,
    everyMs,
    log,
    async round() {
      found = { tell: await read(), at: performance.now() };
      resolve();
      return false;
    },
  });
  return {
    looked,
    async stop() {
      await rounds.stop();
      stopReporting();
    },
  };
}
