import type { SettingsValues } from '@keytrail/settings';
import {
  createRestoreFence,
  type Database,
  type FencePass,
  type fenceSettings,
  type RestoreFence,
  type Transaction,
} from '@keytrail/storage';
import { type Logger, report } from '@keytrail/telemetry';
import type { EventBus } from './bus.ts';
import { createOutsideStore } from './outside-store.ts';
import { startRounds } from './rounds.ts';
import type { eventSettings } from './settings.ts';

export type RunningFence = RestoreFence & { stop(): Promise<void> };

export interface StartRestoreFence {
  readonly db: Database;
  readonly bus: EventBus;
  readonly log: Logger;
  readonly config: SettingsValues<typeof fenceSettings> & Pick<SettingsValues<typeof eventSettings>, 'natsReplicas'>;
  /** As of createRestoreFence. */
  readonly recover?: (tx: Transaction) => Promise<void>;
}

/**
 * The fence of a service's database, with NATS as the store outside. Resolves when it has been looked at once, so that nobody is answered before
 * a restore that happened while the service was down is noticed; a database that cannot be asked is looked at again.
 */
export async function startRestoreFence({ db, bus, log, config, recover }: StartRestoreFence): Promise<RunningFence> {
  const fence = createRestoreFence({
    db,
    log,
    outside: createOutsideStore(bus, { replicas: config.natsReplicas }),
    timelineSwitch: config.timelineSwitch,
    ...(recover && { recover }),
  });
  await fence
    .look()
    .catch((error) => log.warn({ err: error }, 'whether the database went back in time is not known yet'));
  const rounds = startRounds({
    what: 'the look at where the database stands',
    everyMs: config.fenceLookMs,
    log,
    async round() {
      await fence.look();
      return false;
    },
  });
  const stopReporting = report(['databaseFenced', 'restoresUnaccepted'], (observe) => {
    if (!fence.looked) return;
    observe('databaseFenced', fence.pass ? 0 : 1);
    observe('restoresUnaccepted', fence.unaccepted);
  });
  const unfollow = bus.onReconnect(() => rounds.soon());
  return {
    get pass(): FencePass | undefined {
      return fence.pass;
    },
    get state() {
      return fence.state;
    },
    get looked() {
      return fence.looked;
    },
    get outsideKnown() {
      return fence.outsideKnown;
    },
    get unaccepted() {
      return fence.unaccepted;
    },
    look: () => fence.look(),
    async stop() {
      unfollow();
      stopReporting();
      await rounds.stop();
    },
  };
}
