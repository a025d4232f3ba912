import { equals, type MessageInitShape } from '@bufbuild/protobuf';
import {
  DeviceCertificateSchema,
  type HistoryPolicy,
  type InitialSession,
  type RosterDeviceSchema,
} from '@keytrail/contracts';
import { HeaderError, headerText, parseHeader, rosterHash, type Session } from '@keytrail/crypto';
import { verifySignatures } from '@keytrail/crypto/node';
import { invalidField } from '@keytrail/rpc';
import { type ActiveDevices, incompletenessOf } from '../domain/completeness.ts';
import type { RosterMember } from '../domain/roster.ts';
import { disagreementOf } from '../domain/session-header.ts';
import type { Parts } from '../parts.ts';
import { standingIn } from '../peers/device-directory.ts';
import {
  certificateInvalid,
  deviceNotActive,
  headerMismatch,
  limitExceeded,
  sessionIncomplete,
  signatureInvalid,
} from '../refusals.ts';

/** The place of a session in its conversation: what its header must say. */
export interface SessionPlace {
  readonly conversationId: string;
  readonly epoch: bigint;
  readonly rosterVersion: bigint;
  readonly members: readonly RosterMember[];
  readonly historyPolicy?: HistoryPolicy | undefined;
  readonly previousHeaderHash?: Uint8Array | undefined;
}

/** A session whose header is true, signed by the calling device, and which covers its roster. */
export interface CheckedSession extends Session {
  readonly upload: InitialSession;
  /** Where the upload stands in the request. */
  readonly field: string;
  readonly rosterDevices: MessageInitShape<typeof RosterDeviceSchema>[];
}

const mostRosterDevices = 1500;
const sessionIdForm = /^[A-Za-z0-9._:-]{1,128}$/;

/**
 * Checks a session against its place and against the devices that its members have now, which it asks identity-keys.
 * `field` is the session's field in the request. Throws INVALID_FIELD, HEADER_MISMATCH, SIGNATURE_INVALID,
 * CERTIFICATE_INVALID, DEVICE_NOT_REGISTERED, DEVICE_REVOKED, SESSION_INCOMPLETE, LIMIT_EXCEEDED, PEER_UNAVAILABLE.
 * Envelopes and withholdings themselves are checked by the service session, which stores them.
 */
export async function checkSession(
  parts: Pick<Parts, 'devices'>,
  caller: { readonly userId: string; readonly deviceId: string },
  upload: InitialSession | undefined,
  place: SessionPlace,
  field: string,
): Promise<CheckedSession> {
  const signedHeader = upload?.signedHeader;
  if (!upload || !signedHeader) throw invalidField(field, 'is required');
  const session = readHeader(signedHeader.header, `${field}.signed_header.header`);

  const lists = await parts.devices.devicesOf(place.members.map(({ userId }) => userId));
  const own = lists.find(({ userId }) => userId === caller.userId);
  const standing = standingIn(own, caller.deviceId);
  if (standing.state !== 'active') throw deviceNotActive(caller.deviceId, standing);
  const device = own?.devices.find(({ deviceId }) => deviceId === caller.deviceId);
  if (!device) throw new Error('an active device has an entry');

  const disagreement = disagreementOf(session.header, {
    ...place,
    rosterHash: rosterHash(place.members),
    memberIds: place.members.map(({ userId }) => userId),
    initiator: caller,
    initiatorIdentityKey: device.identityKey,
    initiatorSigningKey: device.signingKey,
  });
  if (disagreement) throw headerMismatch(disagreement);

  const [signed] = await verifySignatures([
    { publicKey: device.signingKey, text: headerText(signedHeader.header), signature: signedHeader.signature },
  ]);
  if (!signed) throw signatureInvalid(`${field}.signed_header.signature`);

  const { initiatorCertificate: offered } = upload;
  const registered = device.certificate;
  if (!offered || !registered || !equals(DeviceCertificateSchema, offered, registered))
    throw certificateInvalid(`${field}.initiator_certificate`);

  const roster = lists.map(
    ({ userId, version, devices }): ActiveDevices => ({
      userId,
      version,
      deviceIds: devices.filter(({ revokedAt }) => !revokedAt).map(({ deviceId }) => deviceId),
    }),
  );
  const incomplete = incompletenessOf(upload, session.header.deviceLists, roster);
  if (incomplete) throw sessionIncomplete(incomplete);

  const rosterDevices = lists.flatMap(({ devices }) =>
    devices
      .filter(({ revokedAt }) => !revokedAt)
      .map(({ userId, deviceId, identityKey, signingKey }) => ({
        device: { userId, deviceId },
        identityKey,
        signingKey,
      })),
  );
  if (rosterDevices.length > mostRosterDevices) throw limitExceeded(mostRosterDevices, 'devices of a session');
  return { ...session, upload, field, rosterDevices };
}

/** Parses a header; the rules of its fields are checked here because the contract sees only bytes. */
export function readHeader(header: Uint8Array, field: string): Session {
  let session: Session;
  try {
    session = parseHeader(header);
  } catch (error) {
    if (error instanceof HeaderError) throw invalidField(field, error.message);
    throw error;
  }
  if (!sessionIdForm.test(session.sessionId))
    throw invalidField(field, 'session_id must be 1 to 128 of A-Z a-z 0-9 . _ : -');
  return session;
}
