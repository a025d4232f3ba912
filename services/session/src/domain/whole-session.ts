import type { InitialSession, RosterDevice } from '@keytrail/contracts';
import { checkSealer, EnvelopeError, HeaderError, parseHeader, type Session } from '@keytrail/crypto';
import { equalBytes } from './bytes.ts';
import { type DeviceId, deviceKey, deviceOfKey, sameDevice } from './device.ts';

/** Why an uploaded session cannot be stored. */
export type SessionProblem =
  | { readonly kind: 'header_malformed'; readonly description: string }
  | { readonly kind: 'header_mismatch'; readonly field: string }
  | { readonly kind: 'field'; readonly field: string; readonly description: string }
  | { readonly kind: 'incomplete'; readonly missing: readonly DeviceId[]; readonly unexpected: readonly DeviceId[] };

export interface SessionUpload {
  readonly conversationId: string;
  readonly initiator: DeviceId;
  readonly session: InitialSession;
  readonly rosterDevices: readonly RosterDevice[];
}

/** The header of an upload, or why it is none. */
export function readHeader(upload: InitialSession): Session | SessionProblem {
  try {
    return parseHeader(upload.signedHeader?.header ?? new Uint8Array());
  } catch (error) {
    if (!(error instanceof HeaderError)) throw error;
    return { kind: 'header_malformed', description: error.message };
  }
}

/**
 * Checks all that a session must fulfil but its signatures: the header names this conversation, this initiator and the keys that
 * identity-keys knows of it; every envelope of the first attempt is by the initiator; every device of the roster is covered once.
 * Undefined when all of it holds.
 */
export function findSessionProblem(parsed: Session, upload: SessionUpload): SessionProblem | undefined {
  return (
    headerProblem(parsed, upload) ??
    envelopeProblem(parsed, upload.session) ??
    coverageProblem(upload.session, upload.rosterDevices)
  );
}

function headerProblem(parsed: Session, candidate: SessionUpload): SessionProblem | undefined {
  const { header } = parsed;
  const registered = candidate.rosterDevices.find(({ device }) => device && sameDevice(device, candidate.initiator));
  const agrees: [field: string, held: boolean][] = [
    ['conversation_id', header.conversationId === candidate.conversationId.toLowerCase()],
    ['session_id', /^[A-Za-z0-9._:-]{1,128}$/.test(header.sessionId)],
    ['initiator', sameDevice(parsed.initiator, candidate.initiator)],
    ['initiator_identity_key', !registered || equalBytes(header.initiatorIdentityKey, registered.identityKey)],
    ['initiator_signing_key', !registered || equalBytes(header.initiatorSigningKey, registered.signingKey)],
  ];
  const field = agrees.find(([, held]) => !held)?.[0];
  if (field !== undefined) return { kind: 'header_mismatch', field };
  return registered ? undefined : { kind: 'incomplete', missing: [], unexpected: [candidate.initiator] };
}

function envelopeProblem(parsed: Session, upload: InitialSession): SessionProblem | undefined {
  for (const [index, envelope] of upload.envelopes.entries()) {
    const path = `session.envelopes[${index}]`;
    if (envelope.attempt !== 0)
      return { kind: 'field', field: `${path}.attempt`, description: 'is 0 for an envelope stored with its session' };
    try {
      checkSealer(envelope, parsed);
    } catch (error) {
      if (!(error instanceof EnvelopeError)) throw error;
      return {
        kind: 'field',
        field: `${path}.sealer`,
        description: "must be the header's initiator, with the header's identity, signing and ephemeral keys",
      };
    }
    const [own, initiators] = [envelope.sealerCertificate, upload.initiatorCertificate];
    if (
      !own ||
      !initiators ||
      !equalBytes(own.rootKey, initiators.rootKey) ||
      !equalBytes(own.signature, initiators.signature) ||
      own.certifiedAt?.seconds !== initiators.certifiedAt?.seconds ||
      own.certifiedAt?.nanos !== initiators.certifiedAt?.nanos
    )
      return { kind: 'field', field: `${path}.sealer_certificate`, description: 'must be the initiator_certificate' };
  }
  return undefined;
}

function coverageProblem(upload: InitialSession, rosterDevices: readonly RosterDevice[]): SessionProblem | undefined {
  const roster = new Set(rosterDevices.flatMap(({ device }) => (device ? [deviceKey(device)] : [])));
  const covered = [
    ...upload.envelopes.map(({ recipient }, index) => [recipient, `session.envelopes[${index}].recipient`] as const),
    ...upload.withholdings.map(({ device }, index) => [device, `session.withholdings[${index}].device`] as const),
  ];
  const seen = new Set<string>();
  for (const [device, field] of covered) {
    if (!device) return { kind: 'field', field, description: 'is required' };
    const key = deviceKey(device);
    if (seen.has(key)) return { kind: 'field', field, description: 'names a device that is covered already' };
    seen.add(key);
  }
  const missing = [...roster].filter((key) => !seen.has(key)).map(deviceOfKey);
  const unexpected = [...seen].filter((key) => !roster.has(key)).map(deviceOfKey);
  return missing.length + unexpected.length > 0 ? { kind: 'incomplete', missing, unexpected } : undefined;
}
