import { type Rounds, startRounds } from '@keytrail/events';
import type { Logger } from '@keytrail/telemetry';
import type { Gateway } from '../gateway.ts';

function again(everyMs: number, what: string, log: Logger, work: () => unknown): Rounds {
  return startRounds({
    what,
    everyMs,
    log,
    async round() {
      await work();
      return false;
    },
  });
}

export function keepLease(gateway: Gateway, renewMs: number, log: Logger): Rounds {
  return again(renewMs, 'the renewal of the gateway lease', log, () => gateway.renew());
}

/** The slow sweep: writes every device's entry again, so that a partial loss in Redis heals and live entries do not expire. */
export function sweepDevices(gateway: Gateway, sweepMs: number, log: Logger): Rounds {
  return again(sweepMs, 'the sweep of attached devices', log, () => gateway.assertAll());
}

const expirySearchMs = 1_000;

/** Ends streams whose token has expired, within a second of it: the device attaches again with a fresh one. */
export function endExpiredTokens(gateway: Gateway, log: Logger): Rounds {
  return again(expirySearchMs, 'the search for expired tokens', log, () => gateway.attachments.endExpired(Date.now()));
}

/** Ends streams whose device has been silent for three heartbeats. */
export function endSilentDevices(gateway: Gateway, heartbeatIntervalMs: number, log: Logger): Rounds {
  return again(Math.max(10, heartbeatIntervalMs / 4), 'the search for silent devices', log, () =>
    gateway.attachments.endSilent(performance.now(), heartbeatIntervalMs * 3),
  );
}
