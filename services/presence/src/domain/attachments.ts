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

  /** Up to `most` of those whose entry should be there, from a random one on. */
  some(most: number): Attachment[] {
    const all = this.all();
    const from = Math.floor(Math.random() * all.length);
    const turned = [...all.slice(from, from + most), ...all.slice(0, Math.max(0, from + most - all.length))];
    return turned.slice(0, most).filter(({ asserted, ended }) => asserted && !ended);
  }

  ofUser(userId: string): Attachment[] {
    return this.all().filter((attachment) => attachment.userId === userId);
  }

  /** Takes no silence of `ms` for theirs: it was this process that did not hear. */
  forgiveSilence(ms: number): void {
    for (const attachment of this.#byDevice.values()) attachment.lastHeartbeatMs += ms;
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
