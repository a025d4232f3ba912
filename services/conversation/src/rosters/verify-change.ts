import { equals } from '@bufbuild/protobuf';
import { DeviceCertificateSchema, type SignedRosterChange } from '@keytrail/contracts';
import { type ParsedRosterChange, parseRosterChange, RosterError, rosterChangeStatement } from '@keytrail/crypto';
import { verifySignatures } from '@keytrail/crypto/node';
import { invalidField } from '@keytrail/rpc';
import { sameBytes } from '../domain/session-header.ts';
import type { Parts } from '../parts.ts';
import { standingIn } from '../peers/device-directory.ts';
import { certificateInvalid, deviceNotActive, rosterChangeMismatch, signatureInvalid } from '../refusals.ts';

/** A roster change that the calling device signed. */
export interface VerifiedChange {
  readonly signed: SignedRosterChange;
  readonly change: ParsedRosterChange;
}

/**
 * Verifies that the calling device signed a roster change, with its registered keys; what it says is another question. `field` is the
 * change's field in the request. Throws INVALID_FIELD, ROSTER_CHANGE_MISMATCH, CERTIFICATE_INVALID, SIGNATURE_INVALID, DEVICE_NOT_REGISTERED,
 * DEVICE_REVOKED, PEER_UNAVAILABLE.
 */
export async function verifyChange(
  { devices }: Pick<Parts, 'devices'>,
  caller: { readonly userId: string; readonly deviceId: string },
  signed: SignedRosterChange | undefined,
  field: string,
): Promise<VerifiedChange> {
  if (!signed) throw invalidField(field, 'is required');
  const change = parsed(signed.change, `${field}.change`);
  if (change.author.userId !== caller.userId || change.author.deviceId !== caller.deviceId)
    throw rosterChangeMismatch('author', 'must be the calling device');

  const [list] = await devices.devicesOf([caller.userId]);
  const standing = standingIn(list, caller.deviceId);
  if (standing.state !== 'active') throw deviceNotActive(caller.deviceId, standing);
  const device = list?.devices.find(({ deviceId }) => deviceId === caller.deviceId);
  if (!device) throw new Error('an active device has an entry');
  if (
    !sameBytes(signed.authorIdentityKey, device.identityKey) ||
    !sameBytes(signed.authorSigningKey, device.signingKey)
  )
    throw rosterChangeMismatch('author', 'must come with the registered keys of the calling device');
  const { authorCertificate: offered } = signed;
  if (!offered || !device.certificate || !equals(DeviceCertificateSchema, offered, device.certificate))
    throw certificateInvalid(`${field}.author_certificate`);
  const [held] = await verifySignatures([rosterChangeStatement(signed)]);
  if (!held) throw signatureInvalid(`${field}.signature`);
  return { signed, change };
}

function parsed(change: Uint8Array, field: string): ParsedRosterChange {
  try {
    return parseRosterChange(change);
  } catch (error) {
    if (error instanceof RosterError) throw invalidField(field, error.message);
    throw error;
  }
}
