import { create, toBinary } from '@bufbuild/protobuf';
import { timestampFromMs } from '@bufbuild/protobuf/wkt';
import {
  DeviceCertificateSchema,
  DeviceLogEntrySchema,
  DeviceLogKind,
  EnvelopeSchema,
  HistoryPolicy,
  MemberRole,
  RevokedBy,
  RosterChangeSchema,
  RosterEntrySchema,
  SessionHeaderSchema,
  WithheldReason,
} from '@keytrail/contracts';
import {
  conversationIdText,
  deriveConversationId,
  deviceCertificateText,
  deviceLogEntryHash,
  deviceLogEntryText,
  deviceRevocationText,
  envelopeText,
  headerHash,
  headerText,
  keyCommitment,
  keyCommitmentText,
  linkCode,
  linkCodeSalt,
  linkRequestTranscript,
  messageAssociatedData,
  messageNonce,
  messageText,
  noblePrimitives,
  prekeyText,
  publishedKeysDigest,
  publishedKeysText,
  recoveryKeyText,
  recoverySealingKey,
  recoverySealingText,
  rootKeyChangeText,
  rootKeyFingerprint,
  rootKeySealingText,
  rosterBaseText,
  rosterChangeText,
  rosterEntryHash,
  rosterEntryText,
  rosterHash,
  rosterText,
  safetyNumber,
  sealedRootKeyText,
  sealingKey,
  sealingText,
  senderKey,
  senderKeyInfo,
  transcript,
  withholdingText,
} from '@keytrail/crypto';

/** Bytes that are easy to find again in an example: `length` times `byte`. */
function fill(byte: number, length = 32): Uint8Array {
  return new Uint8Array(length).fill(byte);
}

const ms = 1767323045678;
const conversationId = 'dcecda26-50cb-843d-a8cd-44a2076c490d';
const sessionId = 's-1';
const alice = { userId: 'alice', deviceId: 'phone', identityKey: fill(0x11), signingKey: fill(0x12) };
const bob = { userId: 'bob', deviceId: 'laptop', identityKey: fill(0x21), signingKey: fill(0x22) };
const sessionKey = fill(0x55);
const named = { conversationId, sessionId, epoch: 1n };
const roster = [
  { userId: 'bob', role: MemberRole.MEMBER },
  { userId: 'alice', role: MemberRole.ADMIN },
];
const header = toBinary(
  SessionHeaderSchema,
  create(SessionHeaderSchema, {
    suite: 1,
    ...named,
    rosterVersion: 1n,
    rosterHash: rosterHash(roster),
    deviceLists: [
      { userId: 'alice', version: 1n },
      { userId: 'bob', version: 2n },
    ],
    initiator: { userId: 'alice', deviceId: 'phone' },
    initiatorIdentityKey: alice.identityKey,
    initiatorSigningKey: alice.signingKey,
    initiatorEphemeralKey: fill(0x13),
    keyCommitment: keyCommitment(sessionKey, named),
    historyPolicy: HistoryPolicy.OWN_MEMBERSHIP,
    createdAt: timestampFromMs(ms),
  }),
);
const session = { ...named, headerHash: headerHash(header) };
const envelope = create(EnvelopeSchema, {
  recipient: { userId: 'bob', deviceId: 'laptop' },
  sealer: { userId: 'alice', deviceId: 'phone' },
  attempt: 0,
  sealerIdentityKey: alice.identityKey,
  sealerSigningKey: alice.signingKey,
  sealerCertificate: { rootKey: fill(0x10), suite: 1, certifiedAt: timestampFromMs(ms), signature: fill(0x1f, 64) },
  sealerEphemeralKey: fill(0x13),
  signedPrekeyId: 1,
  oneTimePrekeyId: 7,
  kemPrekeyId: 2,
  kemCiphertext: fill(0x26, 1088),
  ciphertext: fill(0x57, 48),
});
const sealing = sealingText({
  session,
  attempt: 0,
  sealer: alice,
  recipient: bob,
  ephemeralKey: fill(0x13),
  signedPrekey: { keyId: 1, publicKey: fill(0x23) },
  oneTimePrekey: { keyId: 7, publicKey: fill(0x24) },
  kemPrekey: { keyId: 2, publicKey: fill(0x25, 1184) },
  kemCiphertext: fill(0x26, 1088),
});
const certificate = create(DeviceCertificateSchema, {
  rootKey: fill(0x10),
  suite: 1,
  certifiedAt: timestampFromMs(ms),
  signature: fill(0x1f, 64),
});
const added = create(DeviceLogEntrySchema, {
  version: 1n,
  kind: DeviceLogKind.DEVICE_ADDED,
  previousHash: fill(0),
  recordedAt: timestampFromMs(ms + 1),
  rootKey: fill(0x10),
  ...alice,
  certificate,
});
const revoked = create(DeviceLogEntrySchema, {
  version: 2n,
  kind: DeviceLogKind.DEVICE_REVOKED,
  previousHash: deviceLogEntryHash('alice', added),
  recordedAt: timestampFromMs(ms + 3),
  rootKey: fill(0x10),
  ...alice,
  revocation: {
    by: RevokedBy.USER_DEVICE,
    revokingDeviceId: 'phone',
    signedAt: timestampFromMs(ms + 2),
    signature: fill(0x2f, 64),
  },
});
const change = { previousRootKey: fill(0x10), newRootKey: fill(0x1a), deviceListVersion: 2n };
const changed = create(DeviceLogEntrySchema, {
  version: 3n,
  kind: DeviceLogKind.ROOT_KEY_CHANGED,
  previousHash: deviceLogEntryHash('alice', revoked),
  recordedAt: timestampFromMs(ms + 4),
  rootKey: fill(0x1a),
  rootKeyChange: { ...change, previousSignature: fill(0x3f, 64), newSignature: fill(0x4f, 64) },
});
const published = {
  ...alice,
  certificateSignature: fill(0x1f, 64),
  signedPrekey: { keyId: 1, hash: fill(0x61) },
  lastResortPrekey: { keyId: 2, hash: fill(0x62) },
  oneTimePrekeys: [
    { keyId: 4, hash: fill(0x64) },
    { keyId: 3, hash: fill(0x63) },
  ],
  oneTimeKemPrekeys: [{ keyId: 5, hash: fill(0x65) }],
};
const recovery = recoverySealingText({ userId: 'alice', rootKey: fill(0x10) });
const recoveryKeys = recoverySealingKey(noblePrimitives, fill(0x66), recovery);
const linkRequest = {
  ...alice,
  deviceId: 'tablet',
  kemPrekey: { keyId: 1, publicKey: fill(0x25, 1184), signature: fill(0x5f, 64) },
  linkSecret: fill(0x67),
};
const safety = safetyNumber({ userId: 'alice', rootKey: fill(0x10) }, { userId: 'bob', rootKey: fill(0x20) });
const secrets = [fill(0x31), fill(0x32), fill(0x33), fill(0x34), fill(0x35)];
const envelopeKey = sealingKey(noblePrimitives, secrets, sealing);
const ciphertext = noblePrimitives.aead.seal(
  senderKey(noblePrimitives, sessionKey, session, alice),
  messageNonce(4n),
  new TextEncoder().encode('hello'),
  messageAssociatedData(session, alice, 4n),
);

/** What docs/wire-formats.md shows, by the name of its block: bytes in hexadecimal, or a text as it is. */
const rosterChange = toBinary(
  RosterChangeSchema,
  create(RosterChangeSchema, {
    suite: 1,
    conversationId,
    rosterVersion: 2n,
    previousHash: fill(0x71),
    removed: ['bob'],
    author: { userId: 'alice', deviceId: 'phone' },
    madeAt: timestampFromMs(ms),
  }),
);
const rosterPlace = { conversationId, previousHash: fill(0x71) };
const signedRosterEntry = create(RosterEntrySchema, {
  rosterVersion: 2n,
  signedChange: { change: rosterChange, signature: fill(0x72, 64) },
});
const erasedRosterEntry = create(RosterEntrySchema, { rosterVersion: 3n, erasedUserId: 'bob' });

export const wireFormatExamples: Record<string, Uint8Array | string> = {
  transcript: transcript('keytrail/v1/example', 'é', 258, Uint8Array.of(0xab, 0xcd)),
  'conversation-id': conversationIdText('alice', '0190163d-8694-739b-aea5-966c26f8ad91'),
  'conversation-id-result': deriveConversationId('alice', '0190163d-8694-739b-aea5-966c26f8ad91'),
  'device-certificate': deviceCertificateText(alice, BigInt(ms)),
  prekey: prekeyText('signed-prekey', bob, { keyId: 1, publicKey: fill(0x23) }),
  roster: rosterText(roster),
  'roster-hash': rosterHash(roster),
  'key-commitment': keyCommitmentText(sessionKey, named),
  'key-commitment-result': keyCommitment(sessionKey, named),
  header,
  'session-header': headerText(header),
  'header-hash': headerHash(header),
  withholding: withholdingText(session, bob, WithheldReason.UNCERTIFIED),
  sealing,
  'sealing-key': envelopeKey.key,
  'sealing-nonce': envelopeKey.nonce,
  'sealing-ciphertext': noblePrimitives.aead.seal(envelopeKey.key, envelopeKey.nonce, sessionKey, sealing),
  envelope: envelopeText(envelope, session),
  'sender-key-info': senderKeyInfo(session, alice),
  'sender-key': senderKey(noblePrimitives, sessionKey, session, alice),
  'message-nonce': messageNonce(4n),
  'message-data': messageAssociatedData(session, alice, 4n),
  'message-ciphertext': ciphertext,
  message: messageText(session, alice, 4n, ciphertext),
  'root-key-sealing': rootKeySealingText({
    approver: alice,
    recipient: { ...bob, userId: 'alice', deviceId: 'tablet' },
    rootKey: fill(0x10),
    ephemeralKey: fill(0x14),
    kemPrekey: { keyId: 1, publicKey: fill(0x25, 1184) },
    kemCiphertext: fill(0x26, 1088),
  }),
  'sealed-root-key': sealedRootKeyText({
    approver: alice,
    recipient: { userId: 'alice', deviceId: 'tablet' },
    certificate,
    ephemeralKey: fill(0x14),
    kemPrekeyId: 1,
    kemCiphertext: fill(0x26, 1088),
    ciphertext: fill(0x57, 48),
  }),
  'link-request': linkRequestTranscript(linkRequest),
  'link-code-salt': linkCodeSalt(linkRequest),
  'link-code': await linkCode(noblePrimitives, linkRequest),
  'device-log-added': deviceLogEntryText('alice', added),
  'device-log-added-hash': deviceLogEntryHash('alice', added),
  'device-log-revoked': deviceLogEntryText('alice', revoked),
  'device-log-changed': deviceLogEntryText('alice', changed),
  'roster-change': rosterChangeText(rosterChange),
  'roster-entry': rosterEntryText(rosterPlace, signedRosterEntry),
  'roster-entry-hash': rosterEntryHash(rosterPlace, signedRosterEntry),
  'roster-erasure': rosterEntryText(rosterPlace, erasedRosterEntry),
  'roster-base': rosterBaseText({
    members: [
      { userId: 'alice', role: MemberRole.ADMIN },
      { userId: 'bob', role: MemberRole.MEMBER },
    ],
    permissions: { addMembers: MemberRole.MEMBER, removeMembers: MemberRole.ADMIN, changePolicy: MemberRole.ADMIN },
    historyPolicy: HistoryPolicy.SHARED,
  }),
  'device-revocation': deviceRevocationText(alice, BigInt(ms + 2)),
  'root-key-change': rootKeyChangeText('alice', change),
  'published-keys': publishedKeysText(published),
  'published-keys-digest': publishedKeysDigest(published),
  recovery,
  'recovery-key': recoveryKeyText(fill(0x66)),
  'recovery-sealing-key': recoveryKeys.key,
  'recovery-sealing-nonce': recoveryKeys.nonce,
  'recovery-sealed': noblePrimitives.aead.seal(recoveryKeys.key, recoveryKeys.nonce, fill(0x68), recovery),
  'root-key-fingerprint': rootKeyFingerprint({ userId: 'alice', rootKey: fill(0x10) }),
  'safety-number': safety.digits,
};

/** An example as it stands in the document: 48 bytes a line, a run of one byte over more than 64 bytes written `xx * count`. */
export function rendered(example: Uint8Array | string): string {
  if (typeof example === 'string') return example;
  const digits = Buffer.from(example).toString('hex');
  const short = digits.replaceAll(/(..)\1{64,}/g, (run, byte) => `\n${byte} * ${run.length / 2}\n`);
  return short
    .split('\n')
    .flatMap((line) => (line.includes('*') ? [line] : (line.match(/.{1,96}/g) ?? [])))
    .join('\n');
}
