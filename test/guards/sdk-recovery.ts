import type { Guard } from './guard.ts';

const queue = 'packages/client/src/key-queue.ts';
const queueTest = 'packages/client/test/key-queue.test.ts';

/** What the SDK does about keys that it lacks, and about rotations that are due: I4, I6 and I9 on the client's side. */
export const sdkRecovery: readonly Guard[] = [
  {
    name: 'batch-spends-one-prekey',
    invariant: 'I4',
    what: 'What a device asks for at once is sealed with one claimed bundle; the other envelopes use its current prekeys, so that a link in 200 conversations drains no pool (SDK).',
    switchOff: [{ file: 'packages/client/src/offer-checks.ts', find: '      isFirst = false;\n', replace: '' }],
    test: {
      file: queueTest,
      name: 'a device that was just linked gets all keys that it lacks, in a few calls, and costs one one-time prekey',
    },
  },
  {
    name: 'wanted-keys-are-stored-first',
    invariant: 'I6',
    what: 'A key that is missing is in the key store before anybody is asked for it: a crash forgets none (SDK).',
    switchOff: [
      {
        file: queue,
        find: 'await store.saveWantedKeys(await this.#want(missing));',
        replace: 'await this.#want(missing);',
      },
    ],
    test: {
      file: queueTest,
      name: 'what a process left unfinished, the next one goes on with, and does not look through everything again',
    },
  },
  {
    name: 'no-key-is-dropped-silently',
    invariant: 'I6',
    what: 'A wanted key that will not come is told to the application, with what to do (SDK).',
    switchOff: [
      {
        file: queue,
        find: "if (why !== undefined) events.emit('keyRefused', { ...name, ...why });",
        replace: '',
      },
    ],
    test: {
      file: queueTest,
      name: 'a key that is refused for good is told once, with what to do, and does not keep back the others',
    },
  },
  {
    name: 'holder-takes-turns',
    invariant: 'I6',
    what: 'A holder answers requesting devices in turns, batch by batch: one that asks for much keeps nobody waiting (SDK).',
    switchOff: [
      {
        file: 'packages/client/src/lanes.ts',
        find: '    this.#lanes.delete(lane);\n',
        replace: '    if (rest.length === 0) this.#lanes.delete(lane);\n',
      },
    ],
    test: {
      file: 'packages/client/test/offer-batches.test.ts',
      name: 'lanes take turns batch by batch, the urgent first, and nobody is left behind',
    },
  },
  {
    name: 'told-recipients-are-compared',
    invariant: 'I9',
    what: 'Whom the server wants sealed to is held against the verified device lists before a rotation that it asks for is made (SDK).',
    switchOff: [
      {
        file: 'packages/client/src/make-session.ts',
        find: '  if (plan.told !== undefined) checkTold(plan.told, lists);\n',
        replace: '',
      },
    ],
    test: {
      file: 'packages/client/test/rotation-duty.test.ts',
      name: 'a server that wants others sealed to than the verified lists have gets no session, and is told so',
    },
  },
];
