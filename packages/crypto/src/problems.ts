/** What did not hold when something was verified, sealed or opened. `problem` is stable; the message is for people. */
export abstract class VerificationError<Problem extends string> extends Error {
  readonly problem: Problem;

  constructor(subject: string, problem: Problem, detail?: string) {
    super(`${subject}: ${problem}${detail === undefined ? '' : ` (${detail})`}`);
    this.problem = problem;
  }
}

/**
 * - `malformed`: a field is missing, or has not its length
 * - `suite`: another key suite
 * - `root-key`: it is by another root key than the pinned one
 * - `time`: certified_at is not in whole milliseconds since 1970
 * - `signature`: the root key did not sign this
 */
export type CertificateProblem = 'malformed' | 'suite' | 'root-key' | 'time' | 'signature';

export class CertificateError extends VerificationError<CertificateProblem> {
  override readonly name = 'CertificateError';
  constructor(problem: CertificateProblem, detail?: string) {
    super('device certificate', problem, detail);
  }
}

/**
 * - `malformed`: a field is missing, or has not its length
 * - `key`: a public key breaks a rule, which `detail` names
 * - `root-key`: the certificate is by another root key than the pinned one
 * - `certificate`: the certificate does not verify
 * - `signed-prekey`, `kem-prekey`: the device's signing key did not sign that prekey, as that kind
 */
export type RecipientProblem = 'malformed' | 'key' | 'root-key' | 'certificate' | 'signed-prekey' | 'kem-prekey';

export class RecipientError extends VerificationError<RecipientProblem> {
  override readonly name = 'RecipientError';
  constructor(problem: RecipientProblem, detail?: string) {
    super('recipient', problem, detail);
  }
}

/**
 * - `malformed`: it does not parse, a field is missing, or has not its length
 * - `suite`: another key suite
 * - `mismatch`: it is of another conversation, session or epoch than expected; `detail` names the field
 * - `key`: a public key breaks a rule
 * - `certificate`: the initiator's certificate does not verify under its pinned root key
 * - `signature`: the initiator's signing key did not sign these bytes
 */
export type HeaderProblem = 'malformed' | 'suite' | 'mismatch' | 'key' | 'certificate' | 'signature';

export class HeaderError extends VerificationError<HeaderProblem> {
  override readonly name = 'HeaderError';
  constructor(problem: HeaderProblem, detail?: string) {
    super('session header', problem, detail);
  }
}

/**
 * - `malformed`: a field is missing, or has not its length
 * - `recipient`: it is for another device
 * - `sealer`: attempt 0 that is not by the header's initiator with the header's keys
 * - `certificate`: the sealer's certificate does not verify under its pinned root key
 * - `signature`: the sealer's signing key did not sign it
 * - `prekey-unknown`: a private prekey that it was sealed to is not here any more
 * - `low-order`: a Diffie-Hellman result is all zero
 * - `decrypt`: the ciphertext does not authenticate
 * - `commitment`: it holds another key than the one that the header commits to
 */
export type EnvelopeProblem =
  | 'malformed'
  | 'recipient'
  | 'sealer'
  | 'certificate'
  | 'signature'
  | 'prekey-unknown'
  | 'low-order'
  | 'decrypt'
  | 'commitment';

export class EnvelopeError extends VerificationError<EnvelopeProblem> {
  override readonly name = 'EnvelopeError';
  constructor(problem: EnvelopeProblem, detail?: string) {
    super('envelope', problem, detail);
  }
}

/**
 * - `malformed`: a field is missing, or has not its length
 * - `mismatch`: it is of another conversation, session or epoch
 * - `signature`: the sender's signing key did not sign it
 * - `decrypt`: the ciphertext does not authenticate
 */
export type MessageProblem = 'malformed' | 'mismatch' | 'signature' | 'decrypt';

export class MessageError extends VerificationError<MessageProblem> {
  override readonly name = 'MessageError';
  constructor(problem: MessageProblem, detail?: string) {
    super('message', problem, detail);
  }
}

/**
 * - `malformed`: it does not parse
 * - `recipient`: it is for another device or another user
 * - `certificate`: the approver's certificate does not verify under the root key inside
 * - `signature`: the approver's signing key did not sign it
 * - `low-order`: a Diffie-Hellman result is all zero
 * - `decrypt`: the ciphertext does not authenticate: other keys, or another link secret
 */
export type SealedRootKeyProblem = 'malformed' | 'recipient' | 'certificate' | 'signature' | 'low-order' | 'decrypt';

export class SealedRootKeyError extends VerificationError<SealedRootKeyProblem> {
  override readonly name = 'SealedRootKeyError';
  constructor(problem: SealedRootKeyProblem, detail?: string) {
    super('sealed root key', problem, detail);
  }
}
