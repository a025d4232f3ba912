import type { Primitives } from '@keytrail/crypto';
import { type Clock, pause } from './clock.ts';
import { DeviceListRefusedError } from './errors.ts';

export interface DeviceChangesParts {
  readonly primitives: Primitives;
  readonly clock: Clock;
  /** The longest random wait before a look: everybody who knows the user is notified at the same time. */
  readonly jitterMs: number;
  readonly look: (userIds: readonly string[], signal: AbortSignal) => Promise<void>;
  readonly background: (during: string, work: Promise<unknown>) => void;
}

/** Users whose devices are said to have changed. Those who are named while a look waits or goes on are looked at together, each once. */
export class DeviceChanges {
  readonly #parts: DeviceChangesParts;
  readonly #due = new Set<string>();
  #looking = false;

  constructor(parts: DeviceChangesParts) {
    this.#parts = parts;
  }

  due(userId: string, signal: AbortSignal): void {
    this.#due.add(userId);
    if (this.#looking) return;
    this.#looking = true;
    this.#parts.background('look at devices', this.#lookAtAll(signal));
  }

  async #lookAtAll(signal: AbortSignal): Promise<void> {
    const { primitives, clock, jitterMs } = this.#parts;
    try {
      while (this.#due.size > 0) {
        const waitMs = ((primitives.randomBytes(1)[0] ?? 0) / 256) * jitterMs;
        if (waitMs > 0) await pause(clock, waitMs, signal, true);
        signal.throwIfAborted();
        const userIds = [...this.#due];
        this.#due.clear();
        await this.#lookAt(userIds, signal);
      }
    } finally {
      this.#looking = false;
    }
  }

  async #lookAt(userIds: readonly string[], signal: AbortSignal): Promise<void> {
    const { look, background } = this.#parts;
    try {
      await look(userIds, signal);
    } catch (error) {
      if (!(error instanceof DeviceListRefusedError) || userIds.length === 1) {
        background('look at devices', Promise.reject(error));
        return;
      }
      // One user's list that is refused must not hide what changed for the others.
      for (const userId of userIds) await this.#lookAt([userId], signal);
    }
  }
}
