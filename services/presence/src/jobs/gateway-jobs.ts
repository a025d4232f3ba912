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

/** Renews the lease; what it finds lost is healed by `healing`, so that the renewals do not wait for that. */
export function keepLease(gateway: Gateway, renewMs: number, healing: Rounds, log: Logger): Rounds {
  return again(renewMs, 'the renewal of the gateway lease', log, async () => {
    if (await gateway.renew()) healing.soon();
  });
}

/** Asserts those again whose entries were found lost; asks nobody whether there are any. */
export function healDevices(gateway: Gateway, renewMs: number, log: Logger): Rounds {
  return again(renewMs, 'the healing of lost entries', log, () => gateway.heal());
}

/** The slow sweep: writes every device's entry again, so that a loss that no renewal saw heals and live entries do not expire. */
export function sweepDevices(gateway: Gateway, sweepMs: number, log: Logger): Rounds {
  return again(sweepMs, 'the sweep of attached devices', log, () => gateway.assertAll());
}

const expirySearchMs = 1_000;

/** Ends streams whose token has expired, within a second of it: the device attaches again with a fresh one. */
export function endExpiredTokens(gateway: Gateway, log: Logger): Rounds {
  return again(expirySearchMs, 'the search for expired tokens', log, () => gateway.attachments.endExpired(Date.now()));
}

/**
 * Ends streams whose device has been silent for three heartbeats, not later than that. Time in which this process stood still is not
 * held against them: what they sent in it has not been read yet.
 */
export function endSilentDevices(gateway: Gateway, heartbeatIntervalMs: number, log: Logger): Rounds {
  const everyMs = Math.max(10, heartbeatIntervalMs / 20);
  let last = performance.now();
  return again(everyMs, 'the search for silent devices', log, () => {
    const now = performance.now();
    const stoodStillMs = now - last - everyMs;
    last = now;
    if (stoodStillMs > heartbeatIntervalMs) gateway.attachments.forgiveSilence(stoodStillMs);
    gateway.attachments.endSilent(now, heartbeatIntervalMs * 3 - everyMs);
  });
}
