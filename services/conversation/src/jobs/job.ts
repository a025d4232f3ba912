import type { Logger } from '@keytrail/telemetry';
import { SpanKind, withSpan } from '@keytrail/telemetry';

/** Work that is done again and again until it is stopped. */
export interface Job {
  /** Resolves when the round at hand is over. */
  stop(): Promise<void>;
}

/** Runs `work` every `intervalMs`, one round after the other; a failing round is logged and the next one comes as usual. */
export function startJob(name: string, intervalMs: number, log: Logger, work: () => Promise<unknown>): Job {
  let timer: NodeJS.Timeout | undefined;
  let stopping = false;
  let round: Promise<void> = Promise.resolve();

  async function run(): Promise<void> {
    try {
      await withSpan(name, { kind: SpanKind.INTERNAL }, () => work());
    } catch (error) {
      log.error({ err: error, job: name }, 'a round of a job failed');
    }
  }

  function schedule(): void {
    timer = setTimeout(() => {
      round = run().then(() => {
        if (!stopping) schedule();
      });
    }, intervalMs);
    timer.unref();
  }

  schedule();
  return {
    async stop() {
      stopping = true;
      clearTimeout(timer);
      await round;
    },
  };
}
