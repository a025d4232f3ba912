import { purgeDeadLetters, purgeInbox } from '@keytrail/events';
import { type Database, purgeRequestIds } from '@keytrail/storage';
import type { Logger } from '@keytrail/telemetry';
import { purgeEndedKeyRequests } from '../store/key-requests.ts';

export interface Forgetting {
  readonly everyMs: number;
  readonly endedKeyRequestRetentionMs: number;
}

/** Forgets request ids, handled events, dead letters and ended key requests that are past their retention. Returns how to stop that. */
export function startForgetting(
  db: Database,
  log: Logger,
  { everyMs, endedKeyRequestRetentionMs }: Forgetting,
): () => void {
  const timer = setInterval(() => {
    Promise.all([
      purgeRequestIds(db),
      purgeInbox(db),
      purgeDeadLetters(db),
      purgeEndedKeyRequests(db, endedKeyRequestRetentionMs),
    ]).catch((err) => log.warn({ err }, 'old rows could not be forgotten; it is tried again'));
  }, everyMs);
  timer.unref();
  return () => clearInterval(timer);
}
