import type { Guard } from './guard.ts';

const folding = 'packages/crypto/src/verify-device-log.ts';
const believing = 'packages/client/src/device-logs.ts';
const linking = 'packages/client/src/linking.ts';
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
        find: 'if (list === undefined || !equalBytes(list.rootKey, rootKey)) throw',
        replace: 'if (list === undefined || list.rootKey.length !== rootKey.length) throw',
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
