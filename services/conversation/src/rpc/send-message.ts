import { create } from '@bufbuild/protobuf';
import {
  ConversationService,
  type SendMessageRequest,
  type SendMessageResponse,
  SendMessageResponseSchema,
} from '@keytrail/contracts';
import { messageText } from '@keytrail/crypto';
import { verifySignatures } from '@keytrail/crypto/node';
import { answerOnce, askedRequest } from '@keytrail/idempotency';
import { deviceCaller, invalidField, type Rpc, refuse, unary } from '@keytrail/rpc';
import type { Transaction } from '@keytrail/storage';
import { announceMessage, announceRotationDue } from '../announcements.ts';
import { judgeSending } from '../domain/sending.ts';
import { sameBytes } from '../domain/session-header.ts';
import type { Parts } from '../parts.ts';
import {
  deviceNotActive,
  notFoundOrNotPermitted,
  refuseClosed,
  rotationRequired,
  signatureInvalid,
} from '../refusals.ts';
import { readRoster } from '../store/conversations.ts';
import { type CommittedSession, findCommittedSession } from '../store/epochs.ts';
import { membershipsOf } from '../store/memberships.ts';
import { appendMessage, messageWithCounter } from '../store/messages.ts';
import { lockAsMember } from './lock-as-member.ts';

interface Sender {
  readonly userId: string;
  readonly deviceId: string;
}

/** Appends a signed ciphertext to the log, unless its session is one that a removed member could still read. */
export function sendMessage(parts: Parts): Rpc {
  return unary(ConversationService.method.sendMessage, {
    allow: ['device'],
    async handle(request, call) {
      const { userId, deviceId } = deviceCaller(call);
      const sender = { userId, deviceId };
      const session = await sessionToSendUnder(parts, request, sender);
      await verifySender(parts, request, sender, session);
      const asked = askedRequest(ConversationService.method.sendMessage, request, userId);
      const { response } = await answerOnce(parts.db, asked, (tx) => append(parts, tx, request, sender, session));
      return response;
    },
  });
}

/** The session, for current members alone. */
async function sessionToSendUnder(
  { db }: Parts,
  { conversationId, sessionId }: SendMessageRequest,
  sender: Sender,
): Promise<CommittedSession> {
  const [memberships, session] = await Promise.all([
    membershipsOf(db, conversationId, [sender.userId]),
    findCommittedSession(db, { conversationId, sessionId }),
  ]);
  if (memberships(sender.userId).role === undefined) throw notFoundOrNotPermitted();
  if (!session) throw invalidField('session_id', 'is not a session of this conversation');
  return session;
}

async function verifySender(
  { devices }: Parts,
  request: SendMessageRequest,
  sender: Sender,
  session: CommittedSession,
): Promise<void> {
  const standing = await devices.standingOf(sender);
  if (standing.state !== 'active') throw deviceNotActive(sender.deviceId, standing);
  const text = messageText(session, sender, request.senderCounter, request.ciphertext);
  const [signed] = await verifySignatures([{ publicKey: standing.signingKey, text, signature: request.signature }]);
  if (!signed) throw signatureInvalid('signature');
}

async function append(
  { writerBuild, sessionBounds }: Parts,
  tx: Transaction,
  request: SendMessageRequest,
  sender: Sender,
  session: CommittedSession,
): Promise<SendMessageResponse> {
  const { current, own } = await lockAsMember(tx, request.conversationId, sender.userId);
  const { conversationId } = current;
  const { sessionId, senderCounter, ciphertext, signature } = request;
  // Before anything is judged: what is in the log is not refused for what came after it, or its sender would send it once more.
  const used = await messageWithCounter(tx, { conversationId, sessionId, sender, senderCounter });
  if (used) {
    if (!sameBytes(used.ciphertext, ciphertext) || !sameBytes(used.signature, signature))
      throw invalidField('sender_counter', 'was used before for another message: a nonce must never be used twice');
    return create(SendMessageResponseSchema, { sequence: used.sequence, rotationDue: current.rotationDue });
  }
  refuseClosed(current);
  const verdict = judgeSending(current, own.spans, session);
  if (verdict === 'rotation-required') throw rotationRequired(current);
  if (verdict === 'not-entitled')
    throw refuse('NOT_ENTITLED', "the sender is not entitled to this session's key", {
      metadata: { cause: 'NOT_A_MEMBER_AT_EPOCH' },
    });

  const { sequence, rotationDue } = await appendMessage(
    tx,
    { conversationId, sessionId, epoch: session.epoch, sender, senderCounter, ciphertext, signature },
    sessionBounds,
    writerBuild,
  );
  const memberIds = (await readRoster(tx, conversationId)).map(({ userId }) => userId);
  await announceMessage(tx, { conversationId, sessionId, sequence }, memberIds);
  if (rotationDue !== current.rotationDue) await announceRotationDue(tx, { ...current, rotationDue, memberIds });
  return create(SendMessageResponseSchema, { sequence, rotationDue });
}
