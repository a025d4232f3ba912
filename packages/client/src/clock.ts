/** Time as the SDK sees it, so that tests need not wait for it. */
export interface Clock {
  now(): Date;
  /** Calls once after `ms`; returns how to call it off. A background timer does not keep a process alive. */
  after(ms: number, run: () => void, options?: { background?: boolean }): () => void;
}

export const systemClock: Clock = {
  now: () => new Date(),
  after(ms, run, options) {
    const timer = setTimeout(run, ms);
    if (options?.background === true) (timer as unknown as { unref?: () => void }).unref?.();
    return () => clearTimeout(timer);
  },
};

/** Waits. Throws the signal's reason when it is aborted first. */
export function pause(clock: Clock, ms: number, signal: AbortSignal, background = false): Promise<void> {
  return new Promise((resolve, reject) => {
    if (signal.aborted) return reject(signal.reason);
    const stop = () => {
      callOff();
      reject(signal.reason);
    };
    const callOff = clock.after(
      ms,
      () => {
        signal.removeEventListener('abort', stop);
        resolve();
      },
      { background },
    );
    signal.addEventListener('abort', stop, { once: true });
  });
}
