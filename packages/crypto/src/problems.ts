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

/**
 * - `malformed`: an entry has not the parts of its kind, or a time is not in whole milliseconds
 * - `version`: an entry is missing, or is not in its place
 * - `chain`: an entry does not name the hash of the one before
 * - `hash`: an entry's hash is not the hash of what it says
 * - `root-key`: an entry is under another root key than the user had then
 * - `certificate`: a device was added or certified again without the root key's signature
 * - `device`: a device is added twice, comes back after its revocation, is not there, or has other keys
 * - `revocation`: the root key did not sign the revocation that is said to be by a device of the user, or the change of the root key kept it
 * - `root-key-change`: it is not signed as it must be, is of another moment, or leads back to a former root key
 * - `fork`: the list names another hash for this version than the log has
 * - `list`: the list is not what its log amounts to
 */
export type DeviceLogProblem =
  | 'malformed'
  | 'version'
  | 'chain'
  | 'hash'
  | 'root-key'
  | 'certificate'
  | 'device'
  | 'revocation'
  | 'root-key-change'
  | 'fork'
  | 'list';

export class DeviceLogError extends VerificationError<DeviceLogProblem> {
  override readonly name = 'DeviceLogError';
  constructor(problem: DeviceLogProblem, detail?: string) {
    super('device log', problem, detail);
  }
}

/**
 * - `length`: the text has not its 65 characters
 * - `character`: a character that is in no recovery key; `group` tells where
 * - `group`: the check character of a group does not fit: a typo in it; `group` tells which
 * - `checksum`: each group fits, and the whole does not
 */
export type RecoveryKeyTextProblem = 'length' | 'character' | 'group' | 'checksum';

export class RecoveryKeyTextError extends VerificationError<RecoveryKeyTextProblem> {
  override readonly name = 'RecoveryKeyTextError';
  /** 1 to 13. */
  readonly group: number | undefined;
  constructor(problem: RecoveryKeyTextProblem, group?: number) {
    super('recovery key', problem, group === undefined ? undefined : `group ${group}`);
    this.group = group;
  }
}

/**
 * - `malformed`: it has not its length
 * - `decrypt`: it was sealed with another recovery key, for another user, or holds another root key
 * - `root-key`: what is inside is not the private half of the root key
 */
export type RecoveryProblem = 'malformed' | 'decrypt' | 'root-key';

export class RecoveryError extends VerificationError<RecoveryProblem> {
  override readonly name = 'RecoveryError';
  constructor(problem: RecoveryProblem, detail?: string) {
    super('recovery', problem, detail);
  }
}

/**
 * - `malformed`: it does not parse, or has not the parts of its kind
 * - `version`: an entry is missing, or is not in its place
 * - `chain`: a change does not name the hash of the entry before
 * - `hash`: an entry's hash is not the hash of what it says
 * - `author`: the author was no member
 * - `role`: the author's role did not allow the change
 * - `member`: somebody is added twice, or is removed or given a role without being a member; or no admin would be left
 * - `certificate`: no root key certifies the author's keys
 * - `signature`: the author did not sign it
 */
export type RosterProblem =
  | 'malformed'
  | 'version'
  | 'chain'
  | 'hash'
  | 'author'
  | 'role'
  | 'member'
  | 'certificate'
  | 'signature';

export class RosterError extends VerificationError<RosterProblem> {
  override readonly name = 'RosterError';
  constructor(problem: RosterProblem, detail?: string) {
    super('roster log', problem, detail);
  }
}
