import type { Guard } from './guard.ts';

const upkeep = 'packages/client/src/prekey-upkeep.ts';
const uploads = 'packages/client/src/prekey-uploads.ts';
const test = 'packages/client/test/prekey-upkeep.test.ts';

/** What the SDK does for its own prekeys: I4, no key is handed out that nobody holds; I9, private keys end. */
export const prekeyUpkeep: readonly Guard[] = [
  {
    name: 'sdk-retires-what-it-does-not-hold',
    invariant: 'I4',
    what: 'A client has the service retire one-time prekeys whose private keys it does not hold, as after an older key store was restored.',
    switchOff: [
      {
        file: upkeep,
        find: 'retireOneTimeKeyIds: oneTime.notHeld,',
        replace: 'retireOneTimeKeyIds: oneTime.notHeld.slice(0, 0),',
      },
    ],
    test: {
      file: test,
      name: 'an older copy of the key store is repaired: the service hands out only what the device can open',
    },
  },
  {
    name: 'sdk-sends-unanswered-prekeys-again',
    invariant: 'I4',
    what: 'Prekeys whose upload was not answered are sent again as they were, by the next process too.',
    switchOff: [{ file: upkeep, find: 'await this.#uploads.resume(operation);', replace: '' }],
    test: { file: test, name: 'a rotation whose answer was lost is finished by the next process, with the same keys' },
  },
  {
    name: 'sdk-keeps-old-prekeys-for-the-grace-period',
    invariant: 'I4',
    what: 'The private key of a replaced prekey stays until its grace period is over.',
    switchOff: [
      { file: upkeep, find: 'keepUntil !== undefined && keepUntil <= now', replace: 'keepUntil !== undefined' },
    ],
    test: {
      file: test,
      name: 'what is due is rotated; the old private keys stay for the grace period, and then they go',
    },
  },
  {
    name: 'sdk-deletes-old-prekeys',
    invariant: 'I9',
    what: 'The private key of a replaced or retired prekey is deleted when its grace period is over.',
    switchOff: [{ file: upkeep, find: 'await this.#forgetOld();', replace: '' }],
    test: {
      file: test,
      name: 'what is due is rotated; the old private keys stay for the grace period, and then they go',
    },
  },
  {
    name: 'sdk-deletes-refused-prekeys',
    invariant: 'I9',
    what: 'The private keys of an upload that was refused are deleted.',
    switchOff: [
      {
        file: uploads,
        find: 'await store.removePrekeys(prekeys.filter(({ keyId }) => !current.includes(keyId)));',
        replace: 'await store.removePrekeys(prekeys.filter(() => current.length === 0));',
      },
    ],
    test: { file: test, name: 'the private keys of a refused refill are forgotten' },
  },
];
