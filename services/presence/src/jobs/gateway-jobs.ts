import type { Gateway } from '../gateway.ts';

interface Log {
  warn(fields: object, message: string): void;
}

/** Runs `work` every `everyMs`, never twice at once; a failure is logged and the next turn tries again. Returns the stop. */
export function every(everyMs: number, what: string, log: Log, work: () => Promise<void>): () => Promise<void> {
  let running: Promise<void> = Promise.resolve();
  let busy = false;
  const timer = setInterval(() => {
    if (busy) return;
    busy = true;
    running = work()
      .catch((error: unknown) => log.warn({ err: error }, `${what} failed`))
      .finally(() => {
        busy = false;
      });
  }, everyMs);
  return async () => {
    clearInterval(timer);
    await running;
  };
}

export function keepLease(gateway: Gateway, renewMs: number, log: Log): () => Promise<void> {
  return every(renewMs, 'the renewal of the gateway lease', log, () => gateway.renew());
}

/** The slow sweep: writes every device's entry again, so that a partial loss in Redis heals and live entries do not expire. */
export function sweepDevices(gateway: Gateway, sweepMs: number, log: Log): () => Promise<void> {
  return every(sweepMs, 'the sweep of attached devices', log, () => gateway.assertAll());
}

const expirySearchMs = 1_000;

/** Ends streams whose token has expired, within a second of it: the device attaches again with a fresh one. */
export function endExpiredTokens(gateway: Gateway, log: Log): () => Promise<void> {
  return every(expirySearchMs, 'the search for expired tokens', log, async () => {
    gateway.attachments.endExpired(Date.now());
  });
}

/** Ends streams whose device has been silent for three heartbeats. */
export function endSilentDevices(gateway: Gateway, heartbeatIntervalMs: number, log: Log): () => Promise<void> {
  return every(Math.max(10, heartbeatIntervalMs / 4), 'the search for silent devices', log, async () => {
    gateway.attachments.endSilent(performance.now(), heartbeatIntervalMs * 3);
  });
}
