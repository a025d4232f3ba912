import type { DescMessage } from '@bufbuild/protobuf';
import {
  ConversationChangedSchema,
  DeviceAttachedSchema,
  DeviceListChangedSchema,
  HolderWantedSchema,
  KeyDeliveredSchema,
  KeyRequestDueSchema,
  KeyRequestEndedSchema,
  MessageAddedSchema,
  NotificationRequestedSchema,
  PrekeysDrainedSchema,
  PrekeysLowSchema,
  RootKeyChangedSchema,
  UserErasedSchema,
  UserErasureRequestedSchema,
} from '@keytrail/contracts';

export type EventDomain = 'identitykeys' | 'conversation' | 'session' | 'presence';

/** A kind of event: what it carries, and the subject it travels on. */
export interface EventType<D extends DescMessage = DescMessage> {
  readonly message: D;
  readonly domain: EventDomain;
  /** `keytrail.<domain>.v1.<name>` */
  readonly subject: string;
  readonly stream: string;
}

/** A stream: everything that one service publishes. */
export interface StreamType {
  readonly name: string;
  readonly subjects: readonly string[];
  readonly describe: string;
}

/** A durable consumer: one per stream that carries its events, all of the same name. */
export interface ConsumerType {
  readonly name: string;
  readonly describe: string;
  readonly events: readonly EventType[];
}

function streamOf(domain: EventDomain): string {
  return domain.toUpperCase();
}

export function defineEvent<D extends DescMessage>(message: D, domain: EventDomain, name: string): EventType<D> {
  return { message, domain, subject: `keytrail.${domain}.v1.${name}`, stream: streamOf(domain) };
}

/** A device was registered or revoked. */
export const deviceListChanged = defineEvent(DeviceListChangedSchema, 'identitykeys', 'device_list_changed');
/** A user's root key changed. */
export const rootKeyChanged = defineEvent(RootKeyChangedSchema, 'identitykeys', 'root_key_changed');
/** A pool of one-time prekeys is below its threshold. */
export const prekeysLow = defineEvent(PrekeysLowSchema, 'identitykeys', 'prekeys_low');
/** A device's prekeys are claimed faster than is good. */
export const prekeysDrained = defineEvent(PrekeysDrainedSchema, 'identitykeys', 'prekeys_drained');
/** A user is to be erased by every service. */
export const userErasureRequested = defineEvent(UserErasureRequestedSchema, 'identitykeys', 'user_erasure_requested');
/** A conversation was created or rotated, or its roster changed. */
export const conversationChanged = defineEvent(ConversationChangedSchema, 'conversation', 'conversation_changed');
/** A message was appended to a conversation's log. */
export const messageAdded = defineEvent(MessageAddedSchema, 'conversation', 'message_added');
/** A key request should be looked at now. */
export const keyRequestDue = defineEvent(KeyRequestDueSchema, 'session', 'key_request_due');
/** An envelope of a key request was accepted. */
export const keyDelivered = defineEvent(KeyDeliveredSchema, 'session', 'key_delivered');
/** A key request waits because no holder is online. */
export const holderWanted = defineEvent(HolderWantedSchema, 'session', 'holder_wanted');
/** A key request ended without a key. */
export const keyRequestEnded = defineEvent(KeyRequestEndedSchema, 'session', 'key_request_ended');
/** A device attached. */
export const deviceAttached = defineEvent(DeviceAttachedSchema, 'presence', 'device_attached');
/** Devices should be notified; published by the service that owns what changed. */
export const notificationRequested = {
  identitykeys: defineEvent(NotificationRequestedSchema, 'identitykeys', 'notification_requested'),
  conversation: defineEvent(NotificationRequestedSchema, 'conversation', 'notification_requested'),
  session: defineEvent(NotificationRequestedSchema, 'session', 'notification_requested'),
} as const;

/** A service has erased what it had of a user. */
export const userErased = {
  conversation: defineEvent(UserErasedSchema, 'conversation', 'user_erased'),
  session: defineEvent(UserErasedSchema, 'session', 'user_erased'),
  presence: defineEvent(UserErasedSchema, 'presence', 'user_erased'),
} as const;

export const eventTypes: readonly EventType[] = [
  deviceListChanged,
  rootKeyChanged,
  prekeysLow,
  prekeysDrained,
  userErasureRequested,
  conversationChanged,
  messageAdded,
  keyRequestDue,
  keyDelivered,
  holderWanted,
  keyRequestEnded,
  deviceAttached,
  ...Object.values(notificationRequested),
  ...Object.values(userErased),
];

function ownedBy(domain: EventDomain, service: string): StreamType {
  return { name: streamOf(domain), subjects: [`keytrail.${domain}.v1.>`], describe: `Events of ${service}` };
}

export const streams: readonly StreamType[] = [
  ownedBy('identitykeys', 'identity-keys'),
  ownedBy('conversation', 'conversation'),
  ownedBy('session', 'session'),
  ownedBy('presence', 'presence'),
];

export const consumers = {
  presenceNotifier: {
    name: 'presence-notifier',
    describe: 'presence passes notifications to the gateways that hold the streams',
    events: Object.values(notificationRequested),
  },
  sessionDispatcher: {
    name: 'session-dispatcher',
    describe: 'session offers key requests to holders',
    events: [keyRequestDue],
  },
  sessionPresence: {
    name: 'session-presence',
    describe: 'session resumes the key requests that an attached holder can fulfil',
    events: [deviceAttached],
  },
  sessionDevices: {
    name: 'session-devices',
    describe: 'session keeps its local list of revoked devices',
    events: [deviceListChanged],
  },
  conversationDevices: {
    name: 'conversation-devices',
    describe: 'conversation makes rotations due after a revocation, and tells the members of changed identities',
    events: [deviceListChanged, rootKeyChanged],
  },
  conversationPresence: {
    name: 'conversation-presence',
    describe: 'conversation goes on asking for rotations when a device attaches',
    events: [deviceAttached],
  },
  presenceDevices: {
    name: 'presence-devices',
    describe: 'presence ends the streams of revoked devices',
    events: [deviceListChanged],
  },
  conversationErasure: {
    name: 'conversation-erasure',
    describe: 'conversation erases users',
    events: [userErasureRequested],
  },
  sessionErasure: {
    name: 'session-erasure',
    describe: 'session erases users',
    events: [userErasureRequested],
  },
  presenceErasure: {
    name: 'presence-erasure',
    describe: 'presence erases users',
    events: [userErasureRequested],
  },
  identityKeysErasure: {
    name: 'identity-keys-erasure',
    describe: 'identity-keys gathers the reports of an erasure',
    events: Object.values(userErased),
  },
} as const satisfies Record<string, ConsumerType>;
