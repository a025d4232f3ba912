import { type Attachment, deviceKey } from './attachment.ts';

/** The attachments that this gateway holds: at most one per device. */
export class Attachments {
  readonly #byDevice = new Map<string, Attachment>();

  get size(): number {
    return this.#byDevice.size;
  }

  of(userId: string, deviceId: string): Attachment | undefined {
    return this.#byDevice.get(deviceKey(userId, deviceId));
  }

  /** Puts an attachment in the place of the device's older one, which is told. */
  put(attachment: Attachment): void {
    const key = deviceKey(attachment.userId, attachment.deviceId);
    this.#byDevice.get(key)?.end('superseded');
    this.#byDevice.set(key, attachment);
  }

  /** Removes exactly this attachment; a newer one of the same device stays. */
  remove(attachment: Attachment): void {
    const key = deviceKey(attachment.userId, attachment.deviceId);
    if (this.#byDevice.get(key) === attachment) this.#byDevice.delete(key);
  }

  all(): Attachment[] {
    return [...this.#byDevice.values()];
  }

  ofUser(userId: string): Attachment[] {
    return this.all().filter((attachment) => attachment.userId === userId);
  }

  /** Ends those whose last heartbeat is older than `silenceMs`; returns them. */
  endSilent(nowMs: number, silenceMs: number): Attachment[] {
    const silent = this.all().filter((attachment) => nowMs - attachment.lastHeartbeatMs > silenceMs);
    for (const attachment of silent) attachment.end('heartbeats-missed');
    return silent;
  }

  /** Ends those whose token has expired by `now`, in ms since the epoch. */
  endExpired(now: number): void {
    for (const attachment of this.all()) if (attachment.tokenExpiresAtMs <= now) attachment.end('token-expired');
  }
}
