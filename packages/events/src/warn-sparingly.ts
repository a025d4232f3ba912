import type { Logger } from '@keytrail/telemetry';

const quietMs = 10_000;

/**
 * Warns of the first failure at once, and then at most once in 10 s, with the number of failures that were not told: what fails again
 * and again, as on a database without its tables, must not fill the log.
 */
export function warnSparingly(log: Logger, text: string): (error: unknown) => void {
  let quietUntil = 0;
  let untold = 0;
  return (error) => {
    const now = Date.now();
    if (now < quietUntil) {
      untold += 1;
      return;
    }
    log.warn({ err: error, ...(untold > 0 && { untold }) }, text);
    quietUntil = now + quietMs;
    untold = 0;
  };
}
