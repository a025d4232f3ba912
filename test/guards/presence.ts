import type { Guard } from './guard.ts';

const leases = 'services/presence/src/store/lease-store.ts';
const presenceTest = 'services/presence/test/presence.test.ts';

/** I8, no ghosts, no empty room. */
export const presence: readonly Guard[] = [
  {
    name: 'online-needs-live-lease',
    invariant: 'I8',
    what: 'A device is online only while the lease of its gateway lives.',
    switchOff: [
      {
        file: leases,
        find: 'return foundIn(userIds, answers).filter((device) => alive.has(device.entry.gatewayId));',
        replace: 'return foundIn(userIds, answers).filter((device) => alive.size >= 0 && device.deviceId.length > 0);',
      },
    ],
    test: {
      file: presenceTest,
      name: 'a gateway that stops without a word leaves no ghosts beyond its lease',
      hangs: true,
    },
  },
  {
    name: 'lost-lease-is-noticed',
    invariant: 'I8',
    what: 'A gateway whose lease is gone takes a new one and asserts its devices again: the picture heals by itself.',
    switchOff: [
      {
        file: 'services/presence/src/gateway.ts',
        find: 'const renewed = await this.#renewLease();',
        replace: 'const renewed = (await this.#renewLease()) || this.#leaseMs > 0;',
      },
    ],
    test: {
      file: presenceTest,
      name: 'after FLUSHALL live streams stay, are online again, and still get notifications',
      hangs: true,
    },
  },
  {
    name: 'silent-device-is-offline',
    invariant: 'I8',
    what: 'A stream whose device missed three heartbeats is ended.',
    switchOff: [
      {
        file: 'services/presence/src/domain/attachments.ts',
        find: "for (const attachment of silent) attachment.end('heartbeats-missed');",
        replace: '',
      },
    ],
    test: { file: presenceTest, name: 'a device that misses three heartbeats is offline', hangs: true },
  },
  {
    name: 'attach-compares-counter',
    invariant: 'I8',
    what: 'An attachment with a counter that is not higher does not replace a live one (compare-and-set in the attach script).',
    switchOff: [
      {
        file: leases,
        find: 'if #counter > #mine or (#counter == #mine and counter >= mine) then',
        replace: 'if #counter > 99 then',
      },
    ],
    test: { file: presenceTest, name: 'an attachment with a counter that is not higher loses against a live one' },
  },
  {
    name: 'detach-compares-entry',
    invariant: 'I8',
    what: 'An attachment that ends removes its own entry only: the newer one of the device stays online (compare-and-delete).',
    switchOff: [{ file: leases, find: 'if current == ARGV[2] then return', replace: 'if current then return' }],
    test: {
      file: 'services/presence/test/lists.test.ts',
      name: 'an attachment that ends takes its own entry away, and leaves that of a newer one',
    },
  },
  {
    name: 'older-stream-is-ended',
    invariant: 'I8',
    what: 'The gateway of an older attachment is told that it was replaced, and ends its stream.',
    switchOff: [
      {
        file: 'services/presence/src/gateway.ts',
        find: "if (errand === 'superseded') attachment.end('superseded');",
        replace: '',
      },
    ],
    test: { file: presenceTest, name: 'the newer attachment wins and the older is told, across gateways', hangs: true },
  },
  {
    name: 'strangers-look-offline',
    invariant: 'I8',
    what: 'Who shares no conversation with the caller looks offline: presence tells strangers nothing.',
    switchOff: [
      {
        file: 'services/presence/src/rpc/list-online.ts',
        find: 'userId === callerId || shared.has(userId)',
        replace: 'userId === callerId || shared.has(userId) || userId.length > 0',
      },
    ],
    test: { file: presenceTest, name: 'friends see each other, and strangers look offline' },
  },
];
