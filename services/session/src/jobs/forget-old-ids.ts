import { purgeInbox } from '@keytrail/events';
import { type Database, purgeRequestIds } from '@keytrail/storage';
import type { Logger } from '@keytrail/telemetry';

/** Forgets request ids and handled events that are past their retention. Returns how to stop that. */
export function startForgetting(db: Database, log: Logger, everyMs: number): () => void {
  const timer = setInterval(() => {
    Promise.all([purgeRequestIds(db), purgeInbox(db)]).catch((err) =>
      log.warn({ err }, 'old ids could not be forgotten; it is tried again'),
    );
  }, everyMs);
  timer.unref();
  return () => clearInterval(timer);
}
