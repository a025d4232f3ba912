/**
 * A process of its own that outlives its parent just long enough to stop what the parent started. The channel to the
 * parent closes however the parent ends, SIGKILL included, so that no signal handlers are needed anywhere.
 */
import { type StopRecord, stopRecorded } from './stop-recorded.ts';

export type WatchdogMessage = { readonly watch: StopRecord; readonly key: string } | { readonly forget: string };

const records = new Map<string, StopRecord>();

process.on('message', (message: WatchdogMessage) => {
  if ('forget' in message) records.delete(message.forget);
  else records.set(message.key, message.watch);
});

process.on('disconnect', async () => {
  await Promise.allSettled([...records.values()].map(stopRecorded));
  process.exit();
});
