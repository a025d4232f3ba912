export {
  certifiedAtMs,
  certifyDevice,
  createRootKey,
  type DeviceKeys,
  deviceCertificateStatement,
  deviceCertificateText,
  verifyDeviceCertificate,
} from './certificate.ts';
export {
  deviceLogEntryHash,
  deviceLogEntryText,
  deviceRevocationStatement,
  deviceRevocationText,
  noPreviousHash,
  rootKeyChangeStatements,
  rootKeyChangeText,
} from './device-log.ts';
export {
  checkSealer,
  envelopeStatement,
  envelopeText,
  type OpenEnvelope,
  type Opener,
  openEnvelope,
  type SealEnvelope,
  type Sealer,
  sealEnvelope,
  sealingKey,
  sealingText,
  verifyEnvelope,
} from './envelope.ts';
export { foldRoster, withAdmin } from './fold-roster.ts';
export {
  conversationIdText,
  deriveConversationId,
  headerHash,
  keyCommitment,
  keyCommitmentText,
  type Ref,
  rosterHash,
  rosterText,
  type SessionName,
} from './hashes.ts';
export {
  type ExpectedSession,
  headerStatement,
  headerText,
  parseHeader,
  type Session,
  type SessionRef,
  signHeader,
  signWithholding,
  verifyHeader,
  withholdingStatement,
  withholdingText,
} from './header.ts';
export { checkEd25519, checkKemKey, checkX25519, type KeyProblem } from './key-checks.ts';
export { linkCode, linkCodeCost, linkCodeSalt, linkRequestTranscript, sameLinkCode } from './link-code.ts';
export {
  type DecryptMessage,
  decryptMessage,
  type EncryptMessage,
  encryptMessage,
  type MessageSession,
  messageAssociatedData,
  messageNonce,
  messageStatement,
  messageText,
  type SentMessage,
  senderKey,
  senderKeyInfo,
} from './message.ts';
export { noblePrimitives } from './noble-primitives.ts';
export {
  createKemPrekey,
  createOneTimePrekey,
  createSignedPrekey,
  type NewPrekey,
  type PrekeySigner,
  prekeyStatement,
  prekeyText,
  type SignedPrekeyKind,
  type VerifiedRecipient,
  verifyBundle,
  verifyDevice,
} from './prekeys.ts';
export { type Encapsulation, type KeyPair, lengths, type Primitives, type ScryptCost, suite } from './primitives.ts';
export {
  CertificateError,
  type CertificateProblem,
  DeviceLogError,
  type DeviceLogProblem,
  EnvelopeError,
  type EnvelopeProblem,
  HeaderError,
  type HeaderProblem,
  MessageError,
  type MessageProblem,
  RecipientError,
  type RecipientProblem,
  RecoveryError,
  RecoveryKeyTextError,
  type RecoveryKeyTextProblem,
  type RecoveryProblem,
  RosterError,
  type RosterProblem,
  SealedRootKeyError,
  type SealedRootKeyProblem,
  VerificationError,
} from './problems.ts';
export {
  fingerprintOf,
  type PrekeyHash,
  type PublishedKeys,
  publicKeyHash,
  publishedKeysDigest,
  publishedKeysText,
} from './published-keys.ts';
export {
  createRecoveryKey,
  openRecovery,
  type RecoverySubject,
  recoverySealingKey,
  recoverySealingText,
  sealRecovery,
} from './recovery.ts';
export { parseRecoveryKey, recoveryKeyText } from './recovery-key-text.ts';
export {
  type LinkingDevice,
  type LinkRequest,
  openSealedRootKey,
  rootKeySealingText,
  type SealedRootKeyParts,
  sealedRootKeyText,
  sealRootKeyToDevice,
} from './root-key.ts';
export { rosterBaseText } from './roster-base.ts';
export {
  type ParsedRosterChange,
  parseRosterChange,
  type RosterAuthor,
  type RosterPlace,
  rosterChangeStatement,
  rosterChangeText,
  rosterEntryHash,
  rosterEntryText,
  signRosterChange,
  type UnsignedRosterChange,
  verifyRosterChange,
} from './roster-log.ts';
export {
  emptyRoster,
  mostRosterMembers,
  type RosterMember,
  type RosterPermissions,
  type RosterState,
  type RosterVersion,
} from './roster-state.ts';
export {
  compareSafetyNumber,
  type RootKeyOwner,
  rootKeyFingerprint,
  type SafetyNumber,
  safetyNumber,
} from './safety-number.ts';
export { type Statement, verifyStatement } from './statement.ts';
export { decodeParts, type Part, transcript } from './transcript.ts';
export {
  compareDeviceList,
  type DeviceLogState,
  emptyDeviceLog,
  type LoggedDevice,
  type LoggedRootKey,
  loggedRootKey,
  rootKeyChangeIn,
  verifyDeviceLog,
} from './verify-device-log.ts';
