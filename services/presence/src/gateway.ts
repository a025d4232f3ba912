import { randomUUID } from 'node:crypto';
import { create, fromBinary, toBinary } from '@bufbuild/protobuf';
import {
  GatewayDeliverySchema,
  type Notification,
  type UserErasureRequested,
  UserErasureRequestedSchema,
} from '@keytrail/contracts';
import { type EventBus, publishCore, subscribeCore } from '@keytrail/events';
import { attr, currentTraceparent, SpanKind, withSpan } from '@keytrail/telemetry';
import type { Attachment } from './domain/attachment.ts';
import { Attachments } from './domain/attachments.ts';
import type { DeviceEntry } from './domain/device-entry.ts';
import type { FoundDevice, LeaseStore } from './store/lease-store.ts';

interface Log {
  info(fields: object, message: string): void;
  warn(fields: object, message: string): void;
}

/** All gateways listen to it. */
const erasedSubject = 'keytrail.gateways.user_erased';

type Errand = 'deliver' | 'superseded' | 'heartbeat' | 'revoked';

/**
 * This process as a gateway: it holds the streams of attached devices under a lease, and takes errands for them from other
 * gateways over core NATS (`keytrail.gateway.<id>.<errand>`, and what is for all of them `keytrail.gateways.user_erased`). The id is random per boot, and changes when the lease was lost.
 */
export class Gateway {
  readonly attachments = new Attachments();
  /** True once this gateway reads on in the list of revocations: a device that is found active after that needs no second look. */
  followsRevocations = false;
  readonly #leases: LeaseStore;
  readonly #bus: EventBus;
  readonly #leaseMs: number;
  readonly #log: Log;
  #id = randomUUID();
  #unsubscribe: (() => void) | undefined;
  #unsubscribeErased: (() => void) | undefined;

  constructor(parts: { leases: LeaseStore; bus: EventBus; leaseMs: number; log: Log }) {
    this.#leases = parts.leases;
    this.#bus = parts.bus;
    this.#leaseMs = parts.leaseMs;
    this.#log = parts.log;
  }

  get id(): string {
    return this.#id;
  }

  async open(): Promise<void> {
    this.#unsubscribe = this.#listen(this.#id);
    this.#unsubscribeErased = this.#listenForErased();
    await this.#leases.openGateway(this.#id, this.#leaseMs);
  }

  /** The entry of an attachment as it stands in Redis while this gateway has its present id. */
  entryOf(attachment: Attachment): DeviceEntry {
    return {
      counter: attachment.counter,
      gatewayId: this.#id,
      connectionId: attachment.connectionId,
      attachedAtMs: attachment.attachedAt.getTime(),
    };
  }

  /**
   * Renews the lease. A lease that is gone means that Redis lost its data or that this process stood still for longer than the lease,
   * so that its devices may be attached elsewhere by now: it takes a new id and asserts each stream again, by compare-and-set.
   */
  async renew(): Promise<void> {
    if (await this.#leases.renewGateway(this.#id, this.#leaseMs)) return;
    const lost = this.#id;
    const unsubscribeLost = this.#unsubscribe;
    this.#id = randomUUID();
    this.#unsubscribe = this.#listen(this.#id);
    await this.#leases.openGateway(this.#id, this.#leaseMs);
    this.#log.warn(
      { lost, gateway: this.#id, attachments: this.attachments.size },
      'gateway lease was lost, asserting devices again',
    );
    await this.assertAll();
    unsubscribeLost?.();
  }

  /**
   * Writes the entry of every attachment that has not ended again; those that a newer attachment replaced are ended. Paced by `pageSize` at
   * a time.
   */
  async assertAll(pageSize = 200): Promise<void> {
    const all = this.attachments.all();
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
    const outcome = await this.#leases.attach(attachment.userId, attachment.deviceId, this.entryOf(attachment));
    if (outcome.outcome === 'newer-attached') {
      attachment.end('superseded');
      return false;
    }
    const { replaced } = outcome;
    if (replaced && replaced.gatewayId !== this.#id && replaced.connectionId !== attachment.connectionId) {
      this.#send(replaced.gatewayId, 'superseded', attachment.userId, attachment.deviceId, replaced.connectionId);
    }
    return true;
  }

  async release(attachment: Attachment): Promise<void> {
    this.attachments.remove(attachment);
    await this.#leases.detach(attachment.userId, attachment.deviceId, this.entryOf(attachment));
  }

  /** Hands a notification to the gateway that holds the device's stream: this one, or another over core NATS. */
  deliver(found: FoundDevice, notification: Notification): void {
    if (found.entry.gatewayId === this.#id)
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
    if (entry.gatewayId === this.#id) this.attachments.of(userId, deviceId)?.end('revoked');
    else this.#send(entry.gatewayId, 'revoked', userId, deviceId, entry.connectionId);
  }

  /**
   * Ends the user's streams on all gateways, by what each of them holds: Redis may have lost the entries. A gateway that does not hear
   * of it ends them by the list of revocations.
   */
  endErased(requested: UserErasureRequested): void {
    publishCore(this.#bus, erasedSubject, toBinary(UserErasureRequestedSchema, requested));
  }

  passHeartbeatOn(gatewayId: string, userId: string, deviceId: string, connectionId: string): void {
    this.#send(gatewayId, 'heartbeat', userId, deviceId, connectionId);
  }

  /** Ends all streams so that their devices attach elsewhere. */
  drain(): void {
    for (const attachment of this.attachments.all()) attachment.end('draining');
  }

  async close(): Promise<void> {
    this.#unsubscribe?.();
    this.#unsubscribeErased?.();
    await this.#leases.closeGateway(this.#id);
  }

  #deliverHere(userId: string, deviceId: string, connectionId: string, notification: Notification): void {
    const attachment = this.attachments.of(userId, deviceId);
    if (attachment?.connectionId !== connectionId) return;
    void withSpan(
      'deliver notification',
      {
        kind: SpanKind.PRODUCER,
        attributes: { [attr.messagingSystem]: 'keytrail', [attr.messagingOperation]: 'deliver' },
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
    publishCore(this.#bus, `keytrail.gateway.${gatewayId}.${errand}`, toBinary(GatewayDeliverySchema, delivery), {
      template: `keytrail.gateway.{gateway}.${errand}`,
    });
  }

  #listenForErased(): () => void {
    const subscription = subscribeCore(this.#bus, erasedSubject, async (bytes) => {
      const { userId } = fromBinary(UserErasureRequestedSchema, bytes);
      const held = this.attachments.ofUser(userId);
      for (const attachment of held) attachment.end('revoked');
      // After all that this gateway has written: it writes no more for those that have ended.
      if (held.length > 0) await this.#leases.forget(userId);
    });
    return () => subscription.stop();
  }

  #listen(gatewayId: string): () => void {
    const subscription = subscribeCore(
      this.#bus,
      `keytrail.gateway.${gatewayId}.*`,
      async (bytes, subject) => {
        const { device, connectionId, notification } = fromBinary(GatewayDeliverySchema, bytes);
        if (!device) return;
        const attachment = this.attachments.of(device.userId, device.deviceId);
        const errand = subject.slice(subject.lastIndexOf('.') + 1) as Errand;
        // Whatever connection the device has by now.
        if (errand === 'revoked') attachment?.end('revoked');
        if (attachment?.connectionId !== connectionId) return;
        if (errand === 'superseded') attachment.end('superseded');
        if (errand === 'heartbeat') attachment.lastHeartbeatMs = performance.now();
        if (errand === 'deliver' && notification)
          this.#deliverHere(device.userId, device.deviceId, connectionId, notification);
      },
      { template: 'keytrail.gateway.{gateway}.*' },
    );
    return () => subscription.stop();
  }
}
