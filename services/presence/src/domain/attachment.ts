import type { Notification } from '@keytrail/contracts';

/** A device as the key of a map: user ids and device ids have no line feed in them. */
export function deviceKey(userId: string, deviceId: string): string {
  return `${userId}\n${deviceId}`;
}

/** Why an attachment ended from the server's side. */
export type AttachmentEnd =
  | 'superseded'
  | 'heartbeats-missed'
  | 'overflow'
  | 'draining'
  | 'revoked'
  | 'not-registered'
  | 'token-expired';

/**
 * One device's open stream, as the gateway that holds it sees it: a bounded queue of notifications with one reader.
 * Times are milliseconds of the monotonic clock that the caller passes in.
 */
export class Attachment {
  readonly userId: string;
  readonly deviceId: string;
  readonly connectionId: string;
  readonly counter: bigint;
  readonly attachedAt: Date;
  /** When the token that opened the stream expires, in ms since the epoch. */
  readonly tokenExpiresAtMs: number;
  lastHeartbeatMs: number;
  /**
   * Known once identity-keys has said that the device is registered and not revoked, at a time from which on revocations are followed. Until
   * the greeting Attach is asking, afterwards whoever is unknown is asked for again.
   */
  standing: 'asking' | 'unknown' | 'known' = 'asking';
  /** Its entry was written once. */
  asserted = false;
  ended: AttachmentEnd | undefined;
  readonly #maxQueued: number;
  readonly #queue: Notification[] = [];
  #wake: (() => void) | undefined;

  constructor(init: {
    userId: string;
    deviceId: string;
    connectionId: string;
    counter: bigint;
    attachedAt: Date;
    tokenExpiresAtMs: number;
    nowMs: number;
    maxQueued: number;
  }) {
    this.userId = init.userId;
    this.deviceId = init.deviceId;
    this.connectionId = init.connectionId;
    this.counter = init.counter;
    this.attachedAt = init.attachedAt;
    this.tokenExpiresAtMs = init.tokenExpiresAtMs;
    this.lastHeartbeatMs = init.nowMs;
    this.#maxQueued = init.maxQueued;
  }

  /** Queues a notification. A full queue ends the attachment: the device attaches again and pulls, so nothing is lost. */
  deliver(notification: Notification): boolean {
    if (this.ended) return false;
    if (this.#queue.length >= this.#maxQueued) {
      this.end('overflow');
      return false;
    }
    this.#queue.push(notification);
    this.#wake?.();
    return true;
  }

  /** What is queued is still read, but not by a device that is no good any more. */
  end(why: AttachmentEnd): void {
    this.ended ??= why;
    if (why === 'revoked' || why === 'not-registered') this.#queue.length = 0;
    this.#wake?.();
  }

  /** The next notification, or undefined once the attachment ended or `signal` aborted. */
  async next(signal: AbortSignal): Promise<Notification | undefined> {
    for (;;) {
      const next = this.#queue.shift();
      if (next) return next;
      if (this.ended || signal.aborted) return undefined;
      await new Promise<void>((resolve) => {
        const wake = () => {
          signal.removeEventListener('abort', wake);
          this.#wake = undefined;
          resolve();
        };
        this.#wake = wake;
        signal.addEventListener('abort', wake, { once: true });
      });
    }
  }
}
