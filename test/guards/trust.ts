import type { Guard } from './guard.ts';

const envelope = 'packages/crypto/src/envelope.ts';
const header = 'packages/crypto/src/header.ts';
const tamper = 'packages/crypto/test/tamper.test.ts';
const storing = 'services/session/test/storing.test.ts';
const creation = 'services/conversation/test/creation.test.ts';
const fulfilment = 'services/session/test/fulfilment.test.ts';
const misses = 'services/session/test/misses.test.ts';

const sdkTrust = 'packages/client/test/trust.test.ts';

const sealToCertified = {
  file: 'packages/crypto/src/prekeys.ts',
  find: 'verifyDeviceCertificate(primitives, device, device.certificate, rootKey);',
  replace: '',
};
const certify = {
  file: 'packages/client/src/directory.ts',
  find: 'verifyDeviceCertificate(this.#primitives, device, certificate, rootKey);',
  replace: '',
};
const logCertified = {
  file: 'packages/crypto/src/verify-device-log.ts',
  find: 'verifyDeviceCertificate(primitives, { userId, deviceId, identityKey, signingKey }, certificate, rootKey);',
  replace: '',
};

/** I9, the server cannot read, nor add a reader unseen. */
export const trust: readonly Guard[] = [
  {
    name: 'seal-to-certified-devices',
    invariant: 'I9',
    what: 'A device can be sealed to only when the pinned root key certifies it (certificate verification).',
    switchOff: [sealToCertified],
    test: { file: tamper, name: 'under a root key that was not pinned is refused as that' },
  },
  {
    name: 'open-from-certified-devices',
    invariant: 'I9',
    what: 'An envelope is opened only when the pinned root key certifies its sealer.',
    switchOff: [
      {
        file: envelope,
        find: 'if (rootKey !== undefined) verifySealerCertificate(primitives, envelope, rootKey);',
        replace: '',
      },
    ],
    test: {
      file: 'packages/crypto/test/envelope.test.ts',
      name: 'by a sealer whom the pinned root key does not certify is refused',
    },
  },
  {
    name: 'open-signed-envelopes',
    invariant: 'I9',
    what: "An envelope is opened only when its sealer's signature over every field verifies.",
    switchOff: [
      {
        file: envelope,
        find: "if (!verifyStatement(primitives, statement)) throw new EnvelopeError('signature');",
        replace: '',
      },
    ],
    test: { file: tamper, name: 'with another ciphertext neither verifies nor opens' },
  },
  {
    name: 'header-by-certified-initiator',
    invariant: 'I9',
    what: "A header is accepted only when the pinned root key certifies its initiator's keys.",
    switchOff: [
      {
        file: header,
        find: 'verifyDeviceCertificate(primitives, device, initiator.certificate, initiator.rootKey);',
        replace: '',
      },
    ],
    test: { file: tamper, name: 'is refused under another root key, and as another session' },
  },
  {
    name: 'header-is-signed',
    invariant: 'I9',
    what: 'A header is accepted only as its initiator signed it, to the bit.',
    switchOff: [
      {
        file: header,
        find: "if (!verifyStatement(primitives, headerStatement(signedHeader, session))) throw new HeaderError('signature');",
        replace: '',
      },
    ],
    test: { file: tamper, name: 'with any other bit does not verify' },
  },
  {
    name: 'messages-are-signed',
    invariant: 'I9',
    what: 'A message is decrypted only as its sender signed it.',
    switchOff: [
      {
        file: 'packages/crypto/src/message.ts',
        find: "if (!verifyStatement(primitives, statement)) throw new MessageError('signature');",
        replace: '',
      },
    ],
    test: { file: tamper, name: 'with another signature does not decrypt' },
  },
  {
    name: 'sdk-seals-to-certified-devices',
    invariant: 'I9',
    what: 'A client makes no session for a device that no pinned root key certifies (the checks of the log, of the list and inside sealing are off).',
    switchOff: [logCertified, certify, sealToCertified],
    test: {
      file: sdkTrust,
      name: 'a device that no root key certifies is refused with the whole list, and nothing is sealed',
    },
  },
  {
    name: 'sdk-reseals-to-certified-devices',
    invariant: 'I9',
    what: 'A holder declines for a device that no pinned root key certifies, whatever the server says (all three checks are off).',
    switchOff: [logCertified, certify, sealToCertified],
    test: {
      file: sdkTrust,
      name: 'a device that no root key certifies gets no key from a holder, whatever the server says',
      hangs: true,
    },
  },
  {
    name: 'sdk-pins-root-keys',
    invariant: 'I9',
    what: 'A client notices a changed root key, and gives it nothing unless the application accepts it.',
    switchOff: [
      {
        file: 'packages/client/src/root-keys.ts',
        find: 'if (equalBytes(pinned, offered)) return { trusted: true, rootKey: pinned };',
        replace: 'if (pinned.length === offered.length) return { trusted: true, rootKey: offered };',
      },
    ],
    test: { file: sdkTrust, name: 'a changed root key is told, and gets nothing unless it is accepted' },
  },
  {
    name: 'sdk-asks-the-header-who-may-read',
    invariant: 'I9',
    what: 'A holder re-seals only for users whom the signed header names, unless the header itself shares history.',
    switchOff: [
      {
        file: 'packages/client/src/offer-checks.ts',
        find: "if (header.historyPolicy !== HistoryPolicy.SHARED) throw new Declined('NOT_ENTITLED');",
        replace: 'if (header.historyPolicy !== HistoryPolicy.SHARED) return;',
      },
    ],
    test: { file: sdkTrust, name: 'a holder declines for a user whom the signed header does not name', hangs: true },
  },
  {
    name: 'sdk-verifies-headers',
    invariant: 'I9',
    what: 'A client opens a session only under a header that its initiator signed.',
    switchOff: [
      {
        file: 'packages/client/src/read-session.ts',
        find: 'const session = verifyHeader(this.#parts.primitives, signedHeader, initiator, { ...name, epoch });',
        replace:
          'const session = parsed.epoch > 0n ? parsed : verifyHeader(this.#parts.primitives, signedHeader, initiator, { ...name, epoch });',
      },
    ],
    test: {
      file: 'packages/client/test/recovery.test.ts',
      name: 'a header by somebody else than its initiator is refused',
    },
  },
  {
    name: 'sdk-follows-the-chain',
    invariant: 'I9',
    what: 'A client refuses a header that does not name the header of the epoch before.',
    switchOff: [
      {
        file: 'packages/client/src/read-session.ts',
        find: "if (!follows || !precedes) throw new SessionRefusedError('chain'",
        replace: "if (!follows && follows) throw new SessionRefusedError('chain'",
      },
    ],
    test: {
      file: 'packages/client/test/recovery.test.ts',
      name: 'a header that does not follow the one before is refused',
    },
  },
  {
    name: 'store-verifies-envelopes',
    invariant: 'I9',
    what: 'StoreSession verifies the signatures of header, envelopes and withholdings.',
    switchOff: [
      {
        file: 'services/session/src/rpc/store-session.ts',
        find: 'if (broken) throw signatureInvalid(broken.field);',
        replace: '',
      },
    ],
    test: { file: storing, name: 'is refused when the signature of a withholding does not verify' },
  },
  {
    name: 'store-verifies-certificate',
    invariant: 'I9',
    what: "StoreSession verifies the initiator's certificate (the signatures of envelopes, which cover it, are off too).",
    switchOff: [
      {
        file: 'services/session/src/rpc/store-session.ts',
        find: "if (!certified) throw certificateInvalid('session.initiator_certificate', 'signature');",
        replace: '',
      },
      {
        file: 'services/session/src/rpc/store-session.ts',
        find: 'if (broken) throw signatureInvalid(broken.field);',
        replace: '',
      },
    ],
    test: { file: storing, name: 'is refused when the signature of the certificate does not verify' },
  },
  {
    name: 'header-tells-the-roster',
    invariant: 'I9',
    what: 'A header is refused unless its roster, device lists and initiator are the true ones (check in code).',
    switchOff: [
      {
        file: 'services/conversation/src/epochs/check-session.ts',
        find: 'if (disagreement) throw headerMismatch(disagreement);',
        replace: '',
      },
    ],
    test: { file: creation, name: 'is refused: roster_hash' },
  },
  {
    name: 'header-by-calling-device',
    invariant: 'I9',
    what: 'A header is signed by the registered key of the calling device (signature verification).',
    switchOff: [
      {
        file: 'services/conversation/src/epochs/check-session.ts',
        find: 'if (!signed) throw',
        replace: 'if (signed === null) throw',
      },
    ],
    test: { file: creation, name: 'is refused: signed by a key that is not the registered one of the calling device' },
  },
  {
    name: 'sent-messages-are-signed',
    invariant: 'I9',
    what: 'A message enters the log only with a signature of its sending device.',
    switchOff: [
      {
        file: 'services/conversation/src/rpc/send-message.ts',
        find: "if (!signed) throw signatureInvalid('signature');",
        replace: '',
      },
    ],
    test: {
      file: 'services/conversation/test/epochs-and-rosters.test.ts',
      name: 'refuses a signature that does not verify, a counter beyond 63 bits, and a session that it does not know',
    },
  },
  {
    name: 'nonce-is-used-once',
    invariant: 'I9',
    what: 'A counter, which is the nonce, is used once under a session by a device (unique constraint).',
    switchOff: [
      {
        file: 'services/conversation/prisma/migrations/20261122000000_conversations/migration.sql',
        find: 'messages_counter_used_once UNIQUE (conversation_id, session_id, sender_user_id, sender_device_id, sender_counter)',
        replace: 'messages_counter_used_once CHECK (true)',
      },
    ],
    test: {
      file: 'services/conversation/test/constraints.test.ts',
      name: 'a message under a session that is not committed, a counter used twice, and a change of a message',
    },
  },
  {
    name: 'entitled-epochs',
    invariant: 'I9',
    what: 'A member is entitled to the epochs of the membership and to no others (pure rule).',
    switchOff: [
      {
        file: 'services/conversation/src/domain/entitlement.ts',
        find: '({ first, last }) => epoch >= first && (last === undefined || epoch <= last),',
        replace: '({ first }) => epoch >= first,',
      },
    ],
    test: {
      file: 'services/conversation/test/domain.test.ts',
      name: 'is to exactly the epochs whose session was made with the user in the roster, and while a member to the next one',
    },
  },
  {
    name: 'request-needs-entitlement',
    invariant: 'I9',
    what: 'RequestKey is refused to those who may not have the key, and opens nothing.',
    switchOff: [
      {
        file: 'services/session/src/wanted-keys.ts',
        find: "if (miss.kind === 'miss' && !mayRequestKey(miss.cause))",
        replace: "if (miss.kind === 'miss' && call.method === '')",
      },
    ],
    test: { file: misses, name: 'gets it from RequestKey too' },
  },
  {
    name: 'offers-to-the-entitled',
    invariant: 'I9',
    what: 'Only devices that are still entitled and not revoked count as holders and are offered a request.',
    switchOff: [
      {
        file: 'services/session/src/domain/holders.ts',
        find: 'facts.entitledUsers.has(holder.userId) && !facts.revoked.has(deviceKey(holder))',
        replace: 'facts.entitledUsers.size >= 0 && holder.deviceId.length > 0',
      },
    ],
    test: { file: fulfilment, name: 'ends at once when no holder exists' },
  },
  {
    name: 'fulfilment-needs-entitlement',
    invariant: 'I9',
    what: 'At the moment of delivery, requester and holder are entitled to the epoch (check in code).',
    switchOff: [
      {
        file: 'services/session/src/accept-fulfilments.ts',
        find: 'if (!entitled.has(device.userId)) {',
        replace: 'if (entitled.size < 0) {',
      },
    ],
    test: { file: fulfilment, name: 'is refused once requester or holder is not entitled any more, or revoked' },
  },
  {
    name: 'fulfilment-not-to-revoked',
    invariant: 'I9',
    what: 'At the moment of delivery, neither requester nor holder is revoked (check in code).',
    switchOff: [
      {
        file: 'services/session/src/accept-fulfilments.ts',
        find: 'if (registered.revokedAt) throw notEntitled(who, MissCause.DEVICE_REVOKED);',
        replace: '',
      },
    ],
    test: { file: fulfilment, name: 'is refused once requester or holder is not entitled any more, or revoked' },
  },
  {
    name: 'revoked-device-reads-nothing',
    invariant: 'I9',
    what: 'A revoked device gets no key, although there is an envelope for it (local list on the hit path).',
    switchOff: [
      {
        file: 'services/session/src/store/initial-session.ts',
        find: '!row.revoked && (row.attempt',
        replace: '(row.attempt',
      },
    ],
    test: { file: misses, name: 'DEVICE_REVOKED: by the local list, although there is an envelope' },
  },
  {
    name: 'logs-hold-no-keys',
    invariant: 'I9',
    what: 'Keys, tokens and credentials never reach a log line (redaction by name).',
    switchOff: [
      {
        file: 'packages/telemetry/src/redaction.ts',
        find: "if (secretName.test(name)) return '[redacted]';",
        replace: '',
      },
    ],
    test: {
      file: 'packages/telemetry/test/log.test.ts',
      name: 'credentials and keys never reach a line, wherever they stand',
    },
  },
];
