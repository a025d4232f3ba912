import type { Guard } from './guard.ts';

const folding = 'packages/crypto/src/verify-device-log.ts';
const believing = 'packages/client/src/device-logs.ts';
const linking = 'packages/client/src/linking.ts';
const sealing = 'packages/client/src/make-session.ts';
const resealing = 'packages/client/src/offer-checks.ts';
const claimTest = 'packages/client/test/claimed-readers.test.ts';
const revokedTest = 'packages/client/test/known-revocations.test.ts';
const logTest = 'packages/crypto/test/device-log.test.ts';
const sdkTest = 'packages/client/test/identities.test.ts';

/** I9, what a client itself checks of a user's devices and root keys, whatever the server tells. */
export const identitiesSdk: readonly Guard[] = [
  {
    name: 'identity-log-hash',
    invariant: 'I9',
    what: 'An entry of a device log is believed only when its hash is the hash of all that it says.',
    switchOff: [
      {
        file: folding,
        find: "if (!equalBytes(entry.hash, deviceLogEntryHash(userId, entry))) throw new DeviceLogError('hash');",
        replace: '',
      },
    ],
    test: { file: logTest, name: 'is refused with any field of any entry changed' },
  },
  {
    name: 'identity-log-chain',
    invariant: 'I9',
    what: 'An entry of a device log is believed only on top of the history that was seen.',
    switchOff: [
      {
        file: folding,
        find: 'if (!equalBytes(entry.previousHash, head)) throw',
        replace: 'if (entry.previousHash.length !== head.length) throw',
      },
    ],
    test: { file: logTest, name: 'is refused for another user, and on top of another history' },
  },
  {
    name: 'identity-log-no-return',
    invariant: 'I9',
    what: 'A client refuses a log in which a revoked device comes back.',
    switchOff: [
      {
        file: folding,
        find: "if (devices.has(deviceId)) throw new DeviceLogError('device'",
        replace: "if (!deviceId) throw new DeviceLogError('device'",
      },
    ],
    test: { file: logTest, name: 'cannot bring a revoked device back, under the same name or with other keys' },
  },
  {
    name: 'identity-log-revocation-signed',
    invariant: 'I9',
    what: 'A revocation passes for one by the user only with the signature of the root key.',
    switchOff: [
      {
        file: folding,
        find: "if (!verifyStatement(primitives, statement)) throw new DeviceLogError('revocation', 'signature');",
        replace: '',
      },
    ],
    test: { file: logTest, name: "cannot pass a revocation off as the user's, or as that of a change that never was" },
  },
  {
    name: 'identity-log-root-key-signed',
    invariant: 'I9',
    what: 'A change of the root key is believed only with the signature of the new one, and passes for signed only with that of the one before.',
    switchOff: [
      { file: folding, find: "if (!signed) throw new DeviceLogError('root-key-change', 'signature');", replace: '' },
    ],
    test: {
      file: logTest,
      name: 'cannot change the root key without the new one, at another moment, or back to a former one',
    },
  },
  {
    name: 'identity-list-no-rollback',
    invariant: 'I9',
    what: 'A client refuses a device list that is older than one that it saw (asking again for one that was overtaken, behind it, is off too).',
    switchOff: [
      {
        file: believing,
        find: "if (list.version < (before[i] ?? 0n)) this.#refuse(log, list.version, 'rolled-back');",
        replace: '',
      },
      { file: believing, find: 'if (version > 0n && version < log.version) overtaken.push(userId);', replace: '' },
    ],
    test: {
      file: sdkTest,
      name: 'a list that goes back is refused and told, also by a device that was started again',
    },
  },
  {
    name: 'identity-list-follows-log',
    invariant: 'I9',
    what: 'A client refuses a device list that says other than its log.',
    switchOff: [{ file: believing, find: 'compareDeviceList(state, list);', replace: '' }],
    test: {
      file: sdkTest,
      name: 'a list that says other than its log is refused, in what it adds, leaves out and exchanges',
    },
  },
  {
    name: 'identity-told-heads',
    invariant: 'I9',
    what: 'The head of a log that came with a first contact must be in the log once that is told.',
    switchOff: [
      {
        file: believing,
        find: "if (entry !== undefined && !equalBytes(entry.hash, told.head)) this.#refuse(log, version, 'fork');",
        replace: '',
      },
    ],
    test: {
      file: sdkTest,
      name: 'a first contact is pinned by what was claimed, and its log must fit what was told then',
    },
  },
  {
    name: 'claim-answers-who-was-asked-for',
    invariant: 'I9',
    what: 'A client seals to nobody whom the answer to a claim names besides those who were asked for (that only members are sealed to is off too).',
    switchOff: [
      {
        file: 'packages/client/src/first-contact.ts',
        find: 'if (users.length !== group.length || users.some(({ userId }, i) => userId !== group[i])) {',
        replace: 'if (users.length < 0) {',
      },
      {
        file: sealing,
        find: "!members.has(('recipient' in sealing ? sealing.recipient : sealing.device).userId)",
        replace: 'members.has(sealing as never)',
      },
    ],
    test: { file: claimTest, name: 'who is named in the answer to a claim, and was not asked for, gets nothing' },
  },
  {
    name: 'claim-brings-nobody-back',
    invariant: 'I9',
    what: 'A client seals to no device that it has seen revoked, whatever version a claim names.',
    switchOff: [
      { file: believing, find: "if (known.revokedInVersion !== undefined) return 'impossible';", replace: '' },
    ],
    test: { file: claimTest, name: 'a device that was seen revoked is not sealed to again, whatever a claim says' },
  },
  {
    name: 'claim-adds-nobody-to-a-seen-log',
    invariant: 'I9',
    what: 'Of a user whose log was seen, a claim adds no device that is not in it.',
    switchOff: [
      { file: sealing, find: 'else if (!vouched.has(device.deviceId))', replace: 'else if (vouched === undefined)' },
    ],
    test: {
      file: claimTest,
      name: 'of a user whose log was seen and is told no more, only the devices that were seen are sealed to',
    },
  },
  {
    name: 'seal-by-the-own-list',
    invariant: 'I9',
    what: 'A client makes no session when its own devices are not told.',
    switchOff: [
      {
        file: sealing,
        find: 'if (untold.some(({ userId }) => userId === own.userId)) await parts.logs.refuseUntold(own.userId);',
        replace: '',
      },
    ],
    test: { file: claimTest, name: 'the own devices are always told: without a list of them nothing is sealed' },
  },
  {
    name: 'reseal-to-no-seen-revocation',
    invariant: 'I9',
    what: 'A holder declines for a device that it has seen revoked, also when the list is told no more.',
    switchOff: [
      {
        file: resealing,
        find: "if (known.revokedInVersion !== undefined) throw new Declined('NOT_ENTITLED');",
        replace: '',
      },
    ],
    test: {
      file: claimTest,
      name: 'a holder re-seals to no device that it has seen revoked, though the list is told no more',
    },
  },
  {
    name: 'reseal-by-the-own-list',
    invariant: 'I9',
    what: "A holder declines for its own user's devices when their list is not told.",
    switchOff: [
      { file: resealing, find: "if (requester.userId === own.userId) throw new Declined('UNCERTIFIED');", replace: '' },
    ],
    test: { file: claimTest, name: "a holder re-seals to none of its user's devices without their list" },
  },
  {
    name: 'seal-to-the-listed-keys',
    invariant: 'I9',
    what: 'A client seals to a claimed bundle only with the keys and the certificate that the verified list has for the device.',
    switchOff: [
      {
        file: sealing,
        find: 'if (!sameCertifiedKeys(bundle, device)) return { device, withheld: WithheldReason.UNCERTIFIED };',
        replace: '',
      },
    ],
    test: {
      file: claimTest,
      name: 'keys that the user certified under the same name, and that the log does not have, get no envelope',
    },
  },
  {
    name: 'reseal-to-the-listed-keys',
    invariant: 'I9',
    what: 'A holder re-seals to a claimed bundle only with the keys and the certificate that the verified list has for the device.',
    switchOff: [
      { file: resealing, find: '(bundle) => sameCertifiedKeys(bundle, device)', replace: '() => device !== undefined' },
    ],
    test: {
      file: claimTest,
      name: 'keys that the user certified under the same name, and that the log does not have, get no envelope',
    },
  },
  {
    name: 'first-contact-one-root-key',
    invariant: 'I9',
    what: 'Of two first contacts at once, only the one under the root key that was pinned is sealed to.',
    switchOff: [
      {
        file: 'packages/client/src/directory.ts',
        find: 'return { verdict: pinned ? verdict : await this.#rootKeys.judge(userId, rootKey), vouched };',
        replace: 'return { verdict: pinned ? verdict : verdict, vouched };',
      },
    ],
    test: {
      file: claimTest,
      name: 'of two first contacts under two root keys, only what the pinned one certifies is sealed to',
    },
  },
  {
    name: 'prepared-session-still-fits',
    invariant: 'I9',
    what: 'A session that was prepared earlier is sent only while it fits the device lists as they are.',
    switchOff: [
      {
        file: 'packages/client/src/conversations.ts',
        find: 'if (then < log.version || (version > 0n && then !== version)) return false;',
        replace: '',
      },
    ],
    test: { file: revokedTest, name: 'a rotation that was prepared before a revocation is made anew' },
  },
  {
    name: 'send-past-no-seen-revocation',
    invariant: 'I9',
    what: 'A client sends nothing under a session that a device may read which it has seen revoked, whether or not the server asks for a rotation.',
    switchOff: [
      {
        file: 'packages/client/src/messages.ts',
        find: 'if (await parts.logs.revokedSince(session.header.deviceLists)) {',
        replace: 'if (session.epoch < 0n) {',
      },
    ],
    test: {
      file: revokedTest,
      name: 'nothing is sent under a session that a device reads which was seen revoked, though no server asks',
    },
  },
  {
    name: 'identity-pins-what-verified',
    invariant: 'I9',
    what: 'A root key is pinned at first contact only after something that it signed was verified.',
    switchOff: [
      {
        file: 'packages/client/src/root-keys.ts',
        find: 'if (pinned === undefined) return { trusted: true, rootKey: offered };',
        replace: 'if (pinned === undefined) return { trusted: await this.confirm(userId, offered), rootKey: offered };',
      },
    ],
    test: {
      file: sdkTest,
      name: 'a root key of initiator and sealer is not pinned before something that it signed was verified',
    },
  },
  {
    name: 'identity-link-code',
    invariant: 'I9',
    what: 'A device is approved only when the code that a person read there is that of the request.',
    switchOff: [
      {
        file: linking,
        find: 'if (!sameLinkCode(await linkCode(primitives, request), code)) throw new LinkCodeMismatchError();',
        replace: '',
      },
    ],
    test: { file: sdkTest, name: 'a link is approved only with the code that the new device shows' },
  },
  {
    name: 'identity-approver',
    invariant: 'I9',
    what: "A new device takes over a root key only when the user's verified device list is under it.",
    switchOff: [
      {
        file: linking,
        find: 'if (list === undefined || list.version === 0n || !equalBytes(list.rootKey, rootKey)) {',
        replace: 'if (list === undefined || list.rootKey.length !== rootKey.length) {',
      },
    ],
    test: {
      file: sdkTest,
      name: 'an approval by somebody with another root key is noticed before anything of it is used',
    },
  },
  {
    name: 'identity-recovery-fits',
    invariant: 'I9',
    what: 'A recovered private key is taken only when it is that of the root key.',
    switchOff: [
      {
        file: 'packages/crypto/src/recovery.ts',
        find: "if (!equalBytes(primitives.ed25519.publicKey(privateKey), rootKey)) throw new RecoveryError('root-key');",
        replace: '',
      },
    ],
    test: {
      file: 'packages/crypto/test/recovery.test.ts',
      name: 'is refused when what is inside is not the private half of the root key',
    },
  },
];
