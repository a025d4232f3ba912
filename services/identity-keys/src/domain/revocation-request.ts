import type { RevokeDeviceRequest } from '@keytrail/contracts';

/** What a device signed to revoke another one, or itself. */
export interface SignedRevocation {
  /** Since 1970, by the signer's clock. */
  readonly signedAtMs: bigint;
  readonly signature: Uint8Array;
}

/** A rule that a field breaks, and which the contract cannot express because it depends on the caller. */
export interface BrokenRule {
  readonly field: string;
  readonly rule: string;
}

/** Signatures older than this, or as far ahead of the server's clock, are refused. */
export const signatureValidForMs = 24 * 60 * 60 * 1000;

/** What a device must say, and no more. */
export function revocationByDevice(request: RevokeDeviceRequest): SignedRevocation | BrokenRule {
  const { revokedAt, signature, auditNote } = request;
  if (auditNote !== '') return { field: 'audit_note', rule: 'is for operators' };
  if (!revokedAt) return { field: 'revoked_at', rule: 'is required of devices' };
  if (revokedAt.nanos % 1_000_000 !== 0) return { field: 'revoked_at', rule: 'must be whole milliseconds' };
  if (signature.length === 0) return { field: 'signature', rule: 'is required of devices' };
  return { signedAtMs: revokedAt.seconds * 1000n + BigInt(revokedAt.nanos / 1_000_000), signature };
}

/** What an operator must say, and no more. */
export function revocationByOperator({ revokedAt, signature, auditNote }: RevokeDeviceRequest): BrokenRule | undefined {
  if (auditNote.trim() === '') return { field: 'audit_note', rule: 'is required of operators' };
  if (revokedAt) return { field: 'revoked_at', rule: 'is for devices, which sign it' };
  return signature.length > 0 ? { field: 'signature', rule: 'is for devices' } : undefined;
}
