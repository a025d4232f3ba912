import { randomUUID } from 'node:crypto';
import { create } from '@bufbuild/protobuf';
import { timestampFromDate } from '@bufbuild/protobuf/wkt';
import {
  ConversationKind,
  type CreateConversationRequest,
  CreateConversationRequestSchema,
  HistoryPolicy,
  MemberRole,
} from '@keytrail/contracts';
import {
  deriveConversationId,
  keyCommitment,
  rosterHash,
  type Session,
  sealEnvelope,
  signHeader,
  signRosterChange,
  type VerifiedRecipient,
  verifyDevice,
} from '@keytrail/crypto';
import { nodePrimitives } from '@keytrail/crypto/node';
import type { BenchDevice } from './device.ts';

/** A user with all its devices as the directory lists them. */
export interface ListedUser {
  readonly userId: string;
  readonly version: bigint;
  readonly devices: readonly VerifiedRecipient[];
}

/** As the user's own device sees them: those who share nothing yet are told nothing of each other. */
export async function listedUser({ userId, identityKeys }: BenchDevice): Promise<ListedUser> {
  const { deviceLists } = await identityKeys.getDevices({ userIds: [userId] });
  const [list] = deviceLists;
  if (!list) throw new Error('no device list');
  const devices = list.devices.map((device) => verifyDevice(nodePrimitives, device, list.rootKey));
  return { userId, version: list.version, devices };
}

/** A new group of users, the creator's among them, sealed to all their devices. */
export function groupRequest(
  creator: BenchDevice,
  users: readonly ListedUser[],
): { readonly request: CreateConversationRequest; readonly session: Session } {
  const requestId = randomUUID();
  const conversationId = deriveConversationId(creator.userId, requestId);
  const sessionId = `session_${randomUUID()}`;
  const sessionKey = nodePrimitives.randomBytes(32);
  const ephemeralKey = nodePrimitives.x25519.keyPair();
  const listed = users.toSorted((a, b) => (a.userId < b.userId ? -1 : 1));
  const members = listed.map(({ userId }) => ({
    userId,
    role: userId === creator.userId ? MemberRole.ADMIN : MemberRole.MEMBER,
  }));
  const historyPolicy = HistoryPolicy.OWN_MEMBERSHIP;
  const { signedHeader, session } = signHeader(nodePrimitives, creator.signingKey, {
    suite: 1,
    conversationId,
    sessionId,
    epoch: 1n,
    rosterVersion: 1n,
    rosterHash: rosterHash(members),
    deviceLists: listed.map(({ userId, version }) => ({ userId, version })),
    initiator: { userId: creator.userId, deviceId: creator.deviceId },
    initiatorIdentityKey: creator.identityKey.publicKey,
    initiatorSigningKey: creator.signingKey.publicKey,
    initiatorEphemeralKey: ephemeralKey.publicKey,
    keyCommitment: keyCommitment(sessionKey, { conversationId, sessionId, epoch: 1n }),
    historyPolicy,
    previousHeaderHash: new Uint8Array(),
    createdAt: timestampFromDate(new Date()),
  });
  const envelopes = listed.flatMap(({ devices }) =>
    devices.map((recipient) =>
      sealEnvelope({
        primitives: nodePrimitives,
        sealer: creator,
        recipient,
        session,
        attempt: 0,
        ephemeralKey,
        sessionKey,
      }),
    ),
  );
  const { ADMIN } = MemberRole;
  const signedRoster = signRosterChange(nodePrimitives, creator, {
    conversationId,
    rosterVersion: 1n,
    previousHash: new Uint8Array(),
    added: members,
    permissions: { addMembers: ADMIN, removeMembers: ADMIN, changePolicy: ADMIN },
    historyPolicy,
    madeAt: new Date(),
  });
  const request = create(CreateConversationRequestSchema, {
    requestId,
    kind: ConversationKind.GROUP,
    members,
    initialSession: { signedHeader, initiatorCertificate: creator.certificate, envelopes, withholdings: [] },
    signedRoster,
  });
  return { request, session };
}
