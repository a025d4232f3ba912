import { timestampNow } from '@bufbuild/protobuf/wkt';
import { type Conversation, NotificationKind } from '@keytrail/contracts';
import { addEvent, conversationChanged, messageAdded, notificationRequested } from '@keytrail/events';
import type { Transaction } from '@keytrail/storage';
import { currentTraceparent } from '@keytrail/telemetry';

export interface ChangeAudience {
  /** Users whose devices are told; those who just left too. */
  readonly notify: readonly string[];
  /** Members are also told that a rotation is due now, or due for a weightier reason. */
  readonly rotationBecameDue?: boolean;
}

/** Tells other services and the members' devices that a conversation was created or rotated, or that its roster changed. */
export async function announceChange(
  tx: Transaction,
  conversation: Conversation,
  { notify, rotationBecameDue = false }: ChangeAudience,
): Promise<void> {
  const { conversationId, epoch, sessionId, rosterVersion, rotationDue, members } = conversation;
  const about = { aggregate: conversationId };
  await addEvent(
    tx,
    conversationChanged,
    { conversationId, epoch, sessionId, rosterVersion, rotationDue, changedAt: timestampNow() },
    about,
  );
  await requestNotification(tx, notify, NotificationKind.CONVERSATION_CHANGED, conversationId, sessionId);
  if (rotationBecameDue) {
    const remaining = members.map(({ userId }) => userId);
    await requestNotification(tx, remaining, NotificationKind.ROTATION_DUE, conversationId, sessionId);
  }
}

/** Tells other services, and the members' devices, that a rotation is due where nothing else changed. */
export async function announceRotationDue(
  tx: Transaction,
  {
    memberIds,
    ...conversation
  }: Pick<Conversation, 'conversationId' | 'epoch' | 'sessionId' | 'rosterVersion' | 'rotationDue'> & {
    readonly memberIds: readonly string[];
  },
): Promise<void> {
  const { conversationId, sessionId } = conversation;
  await addEvent(
    tx,
    conversationChanged,
    { ...conversation, changedAt: timestampNow() },
    { aggregate: conversationId },
  );
  await requestNotification(tx, memberIds, NotificationKind.ROTATION_DUE, conversationId, sessionId);
}

/** Asks one device to make the next session. */
export async function announceRotationAsked(
  tx: Transaction,
  { conversationId, sessionId }: Pick<Conversation, 'conversationId' | 'sessionId'>,
  device: { readonly userId: string; readonly deviceId: string },
): Promise<void> {
  const kind = NotificationKind.ROTATION_ASKED;
  const notification = { kind, conversationId, sessionId, traceparent: currentTraceparent() };
  await addEvent(
    tx,
    notificationRequested.conversation,
    { devices: [{ userId: device.userId, deviceId: device.deviceId }], notification },
    { aggregate: conversationId },
  );
}

/** Tells devices of users that a user's devices or root key changed. */
export async function announceChangedDevices(
  tx: Transaction,
  userId: string,
  notify: readonly string[],
): Promise<void> {
  if (notify.length === 0) return;
  const notification = { kind: NotificationKind.DEVICES_CHANGED, userId, traceparent: currentTraceparent() };
  await addEvent(tx, notificationRequested.conversation, { userIds: [...notify], notification }, { aggregate: userId });
}

/** Tells other services and the members' devices that a message was appended. */
export async function announceMessage(
  tx: Transaction,
  message: { readonly conversationId: string; readonly sessionId: string; readonly sequence: bigint },
  notify: readonly string[],
): Promise<void> {
  const { conversationId, sessionId, sequence } = message;
  await addEvent(tx, messageAdded, { conversationId, sequence }, { aggregate: conversationId });
  await requestNotification(tx, notify, NotificationKind.MESSAGE_ADDED, conversationId, sessionId);
}

async function requestNotification(
  tx: Transaction,
  userIds: readonly string[],
  kind: NotificationKind,
  conversationId: string,
  sessionId: string,
): Promise<void> {
  if (userIds.length === 0) return;
  const notification = { kind, conversationId, sessionId, traceparent: currentTraceparent() };
  await addEvent(
    tx,
    notificationRequested.conversation,
    { userIds: [...userIds], notification },
    { aggregate: conversationId },
  );
}
