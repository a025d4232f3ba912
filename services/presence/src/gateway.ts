import { randomUUID } from 'node:crypto';
import { create, fromBinary, toBinary } from '@bufbuild/protobuf';
import {
  GatewayDeliverySchema,
  type Notification,
  NotificationKindSchema,
  type UserErasureRequested,
  UserErasureRequestedSchema,
} from '@keytrail/contracts';
import { answerCore, type EventBus, publishCore, requestCore, subscribeCore } from '@keytrail/events';
import { attr, count, currentTraceparent, metricAttr, SpanKind, withSpan } from '@keytrail/telemetry';
import type { Attachment } from './domain/attachment.ts';
import { Attachments } from './domain/attachments.ts';
import type { DeviceEntry } from './domain/device-entry.ts';
import { connectionAt, homeOfConnection, homeOfGateway } from './domain/home.ts';
import { rangeOf } from './domain/slot-ranges.ts';
import { type FoundDevice, keyOfEntries, type LeaseStore } from './store/lease-store.ts';

interface Log {
  info(fields: object, message: string): void;
  warn(fields: object, message: string): void;
}

/** All gateways listen to it. */
const erasedSubject = 'keytrail.gateways.user_erased';

type Errand = 'deliver' | 'superseded' | 'revoked';

const heartbeatTemplate = 'keytrail.heartbeats.{home}';
/** Entries that a renewal looks for, besides the canaries: chosen at random, and as many however many devices there are. */
const lookedFor = 16;
/** A gateway that stands still does not answer; the device tries again, or attaches elsewhere. */
const heartbeatAnswerMs = 1_000;

/**
 * This process as a gateway: it holds the streams of attached devices under a lease, and takes errands for them from other
 * gateways over core NATS (`keytrail.gateway.<home>.<errand>`, and what is for all of them `keytrail.gateways.user_erased`). The
 * home is random per boot, the id is a new one of that home whenever the lease was lost.
 */
export class Gateway {
  readonly attachments = new Attachments();
  /** True once this gateway reads on in the list of revocations: a device that is found active after that needs no second look. */
  followsRevocations = false;
  /** When Redis was last found to have lost entries, or this gateway's lease; undefined for never. */
  lastLossAt: Date | undefined;
  readonly #leases: LeaseStore;
  readonly #bus: EventBus;
  readonly #leaseMs: number;
  readonly #log: Log;
  readonly #home = randomUUID().replaceAll('-', '').slice(0, 12);
  #generation = 1;
  readonly #subscriptions: { stop(): void }[] = [];
  /** As they were seen last; the first look only learns them. */
  #canaries: readonly string[] = [];
  /** Ranges of slots whose entries must be written again. */
  #lostRanges = new Set<number>();
  #lostAll = false;
  /** By connection, entries whose deletion failed: their devices left, and would be ghosts for as long as this gateway lives. */
  readonly #left = new Map<string, FoundDevice>();

  constructor(parts: { leases: LeaseStore; bus: EventBus; leaseMs: number; log: Log }) {
    this.#leases = parts.leases;
    this.#bus = parts.bus;
    this.#leaseMs = parts.leaseMs;
    this.#log = parts.log;
  }

  get id(): string {
    return `${this.#home}-${this.#generation}`;
  }

  async open(): Promise<void> {
    await this.#leases.ready();
    this.#subscriptions.push(this.#listen(), this.#listenForErased(), this.#answerHeartbeats());
    await this.#leases.openGateway(this.id, this.#leaseMs);
    this.#canaries = (await this.#leases.look([])).canaries;
  }

  /** Names a connection whose heartbeats find this gateway, whichever replica they meet. */
  newConnection(): string {
    return connectionAt(this.#home, randomUUID());
  }

  /** The entry of an attachment as it stands in Redis while this gateway has its present id. */
  entryOf(attachment: Attachment): DeviceEntry {
    return {
      counter: attachment.counter,
      gatewayId: this.id,
      connectionId: attachment.connectionId,
      attachedAtMs: attachment.attachedAt.getTime(),
    };
  }

  /**
   * Renews the lease, and looks whether Redis still has what was written; true when something is to be healed. A lease that is gone means
   * that Redis lost its data or that this process stood still for longer than the lease, so that its devices may be attached elsewhere
   * by now: it takes a new id, which nothing points to until each stream has been asserted again, by compare-and-set.
   */
  async renew(): Promise<boolean> {
    const renewed = await this.#renewLease();
    if (!renewed) {
      const lost = this.id;
      this.#generation += 1;
      this.#lostAll = true;
      this.lastLossAt = new Date();
      // They point to the lost lease.
      this.#left.clear();
      await this.#leases.openGateway(this.id, this.#leaseMs);
      this.#log.warn(
        { lost, gateway: this.id, attachments: this.attachments.size },
        'gateway lease was lost, asserting devices again',
      );
    }
    const sample = this.attachments.some(lookedFor);
    const { canaries, entriesThere } = await this.#leases.look(sample);
    const lostRanges = canaries.flatMap((canary, range) => (canary === this.#canaries[range] ? [] : [range]));
    this.#canaries = canaries;
    // Entries that went with their range say nothing of the other ranges.
    const missing = sample.some(
      ({ userId }, n) => !entriesThere[n] && !lostRanges.includes(rangeOf(keyOfEntries(userId))),
    );
    if (lostRanges.length > 0 || missing) {
      this.#log.warn({ ranges: lostRanges.length, missing }, 'Redis lost entries, asserting devices again');
      this.lastLossAt = new Date();
      if (missing) this.#lostAll = true;
      // The slots of a node of a cluster may end within the next range, whose canary another node has.
      for (const range of lostRanges) for (const near of [range - 1, range, range + 1]) this.#lostRanges.add(near);
    }
    return this.#lostAll || this.#lostRanges.size > 0 || this.#left.size > 0;
  }

  async #renewLease(): Promise<boolean> {
    let outcome = 'failed';
    try {
      const renewed = await this.#leases.renewGateway(this.id, this.#leaseMs);
      outcome = renewed ? 'renewed' : 'lost';
      return renewed;
    } finally {
      count('leaseRenewals', 1, { [metricAttr.leaseOutcome]: outcome });
    }
  }

  /** Asserts those again whose entries Redis has lost, and deletes the entries of those that left while it was away. What fails is to be healed still. */
  async heal(): Promise<void> {
    for (const { userId, deviceId, entry } of [...this.#left.values()])
      await this.#forgetEntry(userId, deviceId, entry);
    if (!this.#lostAll && this.#lostRanges.size === 0) return;
    const [all, ranges] = [this.#lostAll, this.#lostRanges];
    this.#lostAll = false;
    this.#lostRanges = new Set();
    try {
      await this.assertAll(({ userId }) => all || ranges.has(rangeOf(keyOfEntries(userId))));
    } catch (error) {
      this.#lostAll = true;
      throw error;
    }
  }

  /**
   * Writes the entries of those attachments again that have not ended; those that a newer attachment replaced are ended. Paced by `pageSize` at
   * a time.
   */
  async assertAll(which: (attachment: Attachment) => boolean = () => true, pageSize = 200): Promise<void> {
    const all = this.attachments.all().filter(which);
    for (let from = 0; from < all.length; from += pageSize) {
      await Promise.all(
        all
          .slice(from, from + pageSize)
          .filter(({ ended }) => !ended)
          .map((attachment) => this.assert(attachment)),
      );
    }
  }

  /** Writes the attachment's entry; false when a newer attachment of the device is live. */
  async assert(attachment: Attachment): Promise<boolean> {
    const { userId, deviceId } = attachment;
    const entry = this.entryOf(attachment);
    const outcome = await this.#leases.attach(userId, deviceId, entry);
    if (outcome.outcome === 'newer-attached') {
      attachment.end('superseded');
      return false;
    }
    attachment.asserted = true;
    const { replaced } = outcome;
    if (
      replaced &&
      homeOfGateway(replaced.gatewayId) !== this.#home &&
      replaced.connectionId !== attachment.connectionId
    ) {
      this.#send(replaced.gatewayId, 'superseded', userId, deviceId, replaced.connectionId);
    }
    // It may have left while this was on its way, after its entry was deleted.
    if (attachment.ended || this.attachments.of(userId, deviceId) !== attachment)
      await this.#forgetEntry(userId, deviceId, entry);
    return true;
  }

  async release(attachment: Attachment): Promise<void> {
    this.attachments.remove(attachment);
    await this.#forgetEntry(attachment.userId, attachment.deviceId, this.entryOf(attachment));
  }

  /** Compare-and-delete; an entry that cannot be deleted now is at the next healing. */
  async #forgetEntry(userId: string, deviceId: string, entry: DeviceEntry): Promise<void> {
    try {
      await this.#leases.detach(userId, deviceId, entry);
      this.#left.delete(entry.connectionId);
    } catch (error) {
      this.#left.set(entry.connectionId, { userId, deviceId, entry });
      throw error;
    }
  }

  /** Hands a notification to the gateway that holds the device's stream: this one, or another over core NATS. */
  deliver(found: FoundDevice, notification: Notification): void {
    if (homeOfGateway(found.entry.gatewayId) === this.#home)
      this.#deliverHere(found.userId, found.deviceId, found.entry.connectionId, notification);
    else
      this.#send(
        found.entry.gatewayId,
        'deliver',
        found.userId,
        found.deviceId,
        found.entry.connectionId,
        notification,
      );
  }

  /** Ends a revoked device's stream on the gateway that holds it: this one, or another over core NATS. */
  endRevoked({ userId, deviceId, entry }: FoundDevice): void {
    if (homeOfGateway(entry.gatewayId) === this.#home) this.attachments.of(userId, deviceId)?.end('revoked');
    else this.#send(entry.gatewayId, 'revoked', userId, deviceId, entry.connectionId);
  }

  /**
   * Ends the user's streams on all gateways, by what each of them holds: Redis may have lost the entries. A gateway that does not hear
   * of it ends them by the list of revocations.
   */
  endErased(requested: UserErasureRequested): void {
    publishCore(this.#bus, erasedSubject, toBinary(UserErasureRequestedSchema, requested));
  }

  /**
   * Takes a heartbeat for whichever gateway holds the connection; false when nobody does. Redis is not asked: its name tells where the
   * connection is. Throws when that gateway does not answer.
   */
  async beat(userId: string, deviceId: string, connectionId: string): Promise<boolean> {
    const home = homeOfConnection(connectionId);
    if (home === this.#home) return this.#beatHere(userId, deviceId, connectionId);
    const delivery = create(GatewayDeliverySchema, { device: { userId, deviceId }, connectionId });
    try {
      const answer = await requestCore(
        this.#bus,
        `keytrail.heartbeats.${home}`,
        toBinary(GatewayDeliverySchema, delivery),
        { template: heartbeatTemplate, timeoutMs: heartbeatAnswerMs },
      );
      return answer[0] === 1;
    } catch (error) {
      if (isNobodyThere(error)) return false;
      throw error;
    }
  }

  async close(): Promise<void> {
    for (const subscription of this.#subscriptions) subscription.stop();
    await this.#leases.closeGateway(this.id);
  }

  #beatHere(userId: string, deviceId: string, connectionId: string): boolean {
    const attachment = this.attachments.of(userId, deviceId);
    if (!attachment || attachment.ended || attachment.connectionId !== connectionId) return false;
    attachment.lastHeartbeatMs = performance.now();
    return true;
  }

  #answerHeartbeats(): { stop(): void } {
    return answerCore(
      this.#bus,
      `keytrail.heartbeats.${this.#home}`,
      async (bytes) => {
        const { device, connectionId } = fromBinary(GatewayDeliverySchema, bytes);
        return Uint8Array.of(this.#beatHere(device?.userId ?? '', device?.deviceId ?? '', connectionId) ? 1 : 0);
      },
      { template: heartbeatTemplate },
    );
  }

  #deliverHere(userId: string, deviceId: string, connectionId: string, notification: Notification): void {
    const attachment = this.attachments.of(userId, deviceId);
    if (attachment?.connectionId !== connectionId) return;
    void withSpan(
      'deliver notification',
      {
        kind: SpanKind.PRODUCER,
        attributes: {
          [attr.messagingSystem]: 'keytrail',
          [attr.messagingOperation]: 'deliver',
          [attr.notificationKind]: NotificationKindSchema.value[notification.kind]?.localName ?? '',
        },
      },
      async () => {
        // The device continues the trace from the hop that reached it, not from the one that wanted it reached.
        attachment.deliver({ ...notification, traceparent: currentTraceparent() || notification.traceparent });
      },
    );
  }

  #send(
    gatewayId: string,
    errand: Errand,
    userId: string,
    deviceId: string,
    connectionId: string,
    notification?: Notification,
  ): void {
    const delivery = create(GatewayDeliverySchema, {
      device: { userId, deviceId },
      connectionId,
      ...(notification ? { notification } : {}),
    });
    const home = homeOfGateway(gatewayId);
    publishCore(this.#bus, `keytrail.gateway.${home}.${errand}`, toBinary(GatewayDeliverySchema, delivery), {
      template: `keytrail.gateway.{gateway}.${errand}`,
    });
  }

  #listenForErased(): { stop(): void } {
    return subscribeCore(this.#bus, erasedSubject, async (bytes) => {
      const { userId } = fromBinary(UserErasureRequestedSchema, bytes);
      const held = this.attachments.ofUser(userId);
      for (const attachment of held) attachment.end('revoked');
      // After all that this gateway has written: it writes no more for those that have ended.
      if (held.length > 0) await this.#leases.forget(userId);
    });
  }

  #listen(): { stop(): void } {
    return subscribeCore(
      this.#bus,
      `keytrail.gateway.${this.#home}.*`,
      async (bytes, subject) => {
        const { device, connectionId, notification } = fromBinary(GatewayDeliverySchema, bytes);
        if (!device) return;
        const attachment = this.attachments.of(device.userId, device.deviceId);
        const errand = subject.slice(subject.lastIndexOf('.') + 1) as Errand;
        // Whatever connection the device has by now.
        if (errand === 'revoked') attachment?.end('revoked');
        if (attachment?.connectionId !== connectionId) return;
        if (errand === 'superseded') attachment.end('superseded');
        if (errand === 'deliver' && notification)
          this.#deliverHere(device.userId, device.deviceId, connectionId, notification);
      },
      { template: 'keytrail.gateway.{gateway}.*' },
    );
  }
}

/** Nobody listens there: that gateway is gone. */
function isNobodyThere(error: unknown): boolean {
  const { cause } = error as { cause?: unknown };
  return [error, cause].some((each) => each instanceof Error && each.name === 'NoResponders');
}
