import type { Guard } from './guard.ts';

const gateway = 'services/presence/src/gateway.ts';
const listsTest = 'services/presence/test/lists.test.ts';
const greetingTest = 'services/presence/test/greeting.test.ts';

/** I8 after losses and for crowds: what Redis lost is noticed, streams do not hang on it, and nobody melts the servers by coming back. */
export const presenceHeals: readonly Guard[] = [
  {
    name: 'canaries-tell-lost-ranges',
    invariant: 'I8',
    what: 'A range of slots that lost its data is noticed at the next renewal, and the entries in it are written again at once.',
    switchOff: [
      {
        file: gateway,
        find: 'for (const range of lostRanges) for (const near of [range - 1, range, range + 1]) this.#lostRanges.add(near);',
        replace: '',
      },
    ],
    test: { file: listsTest, name: 'what Redis lost in part is noticed at the next renewal, and asserted again' },
  },
  {
    name: 'ended-lease-is-not-renewed',
    invariant: 'I8',
    what: 'A lease that has ended by the clock of Redis counts no more and cannot be renewed: streams are asserted under a new id first (the script that renews).',
    switchOff: [
      {
        file: 'services/presence/src/store/lease-store.ts',
        find: 'if not ends or tonumber(ends) <= now then return 0 end',
        replace: 'if not ends then return 0 end',
      },
    ],
    test: {
      file: listsTest,
      name: 'a gateway that has not renewed its lease counts no more, by the clock of Redis, though nobody cleared it away',
    },
  },
  {
    name: 'heartbeats-need-no-redis',
    invariant: 'I8',
    what: 'A heartbeat finds the gateway of its connection by the name of the connection, so that losing Redis ends no stream.',
    switchOff: [
      {
        file: gateway,
        find: 'const home = homeOfConnection(connectionId);',
        replace:
          "const home = (await this.#leases.find(userId, deviceId))?.gatewayId.split('-')[0] ?? homeOfConnection(deviceId);",
      },
    ],
    test: { file: greetingTest, name: 'is taken while Redis has nothing of the device, and costs Redis nothing' },
  },
  {
    name: 'leaver-is-not-written-again',
    invariant: 'I8',
    what: 'A device that leaves while its entry is being written again, after the lease of its gateway was lost, leaves no entry behind.',
    switchOff: [
      {
        file: gateway,
        find: 'if (attachment.ended || this.attachments.of(userId, deviceId) !== attachment)',
        replace: "if (attachment.ended === 'revoked')",
      },
    ],
    test: {
      file: listsTest,
      name: 'a device that leaves while its entry is being written again leaves no entry behind',
    },
  },
  {
    name: 'left-while-away-is-no-ghost',
    invariant: 'I8',
    what: 'The entry of a device that left while Redis was away is deleted once Redis is back, with the next renewal.',
    switchOff: [
      { file: gateway, find: 'this.#left.set(entry.connectionId, { userId, deviceId, entry });', replace: '' },
    ],
    test: {
      file: listsTest,
      name: 'a device that left while Redis was away for less than a lease is no ghost once Redis is back',
    },
  },
  {
    name: 'attaches-are-paced',
    invariant: 'I8',
    what: 'A replica attaches so many devices per second; the others are told times to come again that are spread.',
    switchOff: [
      {
        file: 'services/presence/src/domain/admission.ts',
        find: 'if (full || this.#tokens < 1) return',
        replace: 'if (full) return',
      },
    ],
    test: {
      file: greetingTest,
      name: 'is let in as fast as the replica may, and told times to come again that are spread',
    },
  },
  {
    name: 'frozen-gateway-is-left',
    invariant: 'I8',
    what: 'The SDK leaves a gateway that accepts its stream and does not greet, and attaches to the next one.',
    switchOff: [
      {
        file: 'packages/client/src/attachment.ts',
        find: 'const callOffGreeting = clock.after(greetingMs, notGreeted, { background: true });',
        replace: 'const callOffGreeting = () => notGreeted.length;',
      },
    ],
    test: {
      file: 'packages/client/test/reattach.test.ts',
      name: 'a gateway that does not greet is left for the next one',
      hangs: true,
    },
  },
];
