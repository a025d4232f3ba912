import type { Guard } from './guard.ts';

const rows = 'packages/client/src/disk/sealed-rows.ts';
const file = 'packages/client/src/disk/store-file.ts';
const inbox = 'packages/client/src/inbox.ts';
const outbox = 'packages/client/src/outbox.ts';
const disk = 'packages/client/test/disk-key-store.test.ts';
const stores = 'packages/client/test/key-store.test.ts';
const once = 'packages/client/test/messages-once.test.ts';
const sending = 'packages/client/test/outbox.test.ts';

/** What a device keeps, and what it does with it when its servers are away: I6, nothing is lost or doubled; I9, keys stay the device's. */
export const keyStores: readonly Guard[] = [
  {
    name: 'outbox-keeps-what-it-sends',
    invariant: 'I6',
    what: 'A message that waits is kept as it was encrypted before it is sent: after a crash the same request is sent, and the message is there once.',
    switchOff: [
      {
        file: outbox,
        find: 'sendMessage(this.#parts, operation, conversationId, plaintext, { prepared, keep }),',
        replace: 'sendMessage(this.#parts, operation, conversationId, plaintext),',
      },
    ],
    test: {
      file: sending,
      name: 'a process that ends between sending and the answer sends the same request again, and it is there once',
    },
  },
  {
    name: 'inbox-moves-after-the-handler',
    invariant: 'I6',
    what: 'What was delivered moves on only when the handler of the application is through.',
    switchOff: [
      {
        file: inbox,
        find: '    await handler({ ...message, conversationId, again });',
        replace: '    void Promise.resolve(handler({ ...message, conversationId, again })).catch(() => {});',
      },
    ],
    test: {
      file: once,
      name: 'a handler that fails gets the same message again, and nothing behind it before it',
    },
  },
  {
    name: 'inbox-remembers-what-was-delivered',
    invariant: 'I6',
    what: 'How far messages were delivered is in the key store, so that another process gives none twice.',
    switchOff: [
      {
        file: inbox,
        find: 'await store.saveDelivered(conversationId, sequence, unread, received);',
        replace: 'if (unread.length > 0) await store.saveDelivered(conversationId, sequence, unread, received);',
      },
    ],
    test: { file: once, name: 'what came while the device was away is given when it attaches, and only that' },
  },
  {
    name: 'inbox-gives-no-repetition',
    invariant: 'I6',
    what: 'A message that the server repeats under another sequence is known by its sender’s counter, and not given again.',
    switchOff: [
      {
        file: inbox,
        find: 'if (hasCounter(counters, senderCounter)) {',
        replace: 'if (hasCounter(counters, senderCounter) && sequence === 0n) {',
      },
    ],
    test: {
      file: once,
      name: 'a message that the server repeats under another sequence is given once, also by the next process',
    },
  },
  {
    name: 'inbox-keeps-what-was-unreadable',
    invariant: 'I6',
    what: 'A message that was delivered without its key is remembered, and delivered again when the key has come, by the next process too.',
    switchOff: [
      {
        file: inbox,
        find: 'const unread = isWaiting(message) ? [{ conversationId, sessionId, sequence }] : [];',
        replace: 'const unread = isWaiting(message) ? [{ conversationId, sessionId, sequence }].slice(1) : [];',
      },
    ],
    test: {
      file: once,
      name: 'a message whose key is missing is given with its error, keeps none behind it waiting, and comes again when the key does',
    },
  },
  {
    name: 'disk-store-sums-its-rows',
    invariant: 'I9',
    what: 'A key store on disk from which a row was taken, or in which one is an older one, is refused (a sum over all rows, encrypted).',
    switchOff: [
      {
        file: rows,
        find: "if (!sum || !equalBytes(sum, found)) throw new KeyStoreDamagedError(this.#path, 'changed');",
        replace: '',
      },
    ],
    test: { file: disk, name: 'is refused when it lost a row' },
  },
  {
    name: 'disk-store-is-one-clients',
    invariant: 'I9',
    what: 'A key store on disk is open for one client at a time: no counter, and so no nonce, is used twice (exclusive lock).',
    switchOff: [{ file, find: '    PRAGMA locking_mode = EXCLUSIVE;\n', replace: '' }],
    test: { file: disk, name: 'is opened by one client at a time, in this process or another' },
  },
  {
    name: 'disk-store-forgets',
    invariant: 'I9',
    what: 'What the key store on disk forgets is overwritten in its file (secure_delete).',
    switchOff: [{ file, find: 'PRAGMA secure_delete = ON;', replace: 'PRAGMA secure_delete = OFF;' }],
    test: { file: disk, name: 'has nothing of a forgotten private key in any of its files, not even encrypted' },
  },
  {
    name: 'stores-give-copies',
    invariant: 'I9',
    what: 'What a key store returns is a copy: nobody changes a key in it by changing what was returned.',
    switchOff: [
      {
        file: 'packages/client/src/copied.ts',
        find: 'return copyOf(value) as T;',
        replace: 'return (value instanceof Object ? value : copyOf(value)) as T;',
      },
    ],
    test: { file: stores, name: 'has nothing against a sound store' },
  },
];
