import type { Guard } from './guard.ts';

const keyChecks = 'packages/crypto/src/key-checks.ts';
const hostileKeys = 'packages/crypto/test/hostile-keys.test.ts';
const uploads = 'services/identity-keys/test/upload-verification.test.ts';
const verification = 'services/identity-keys/src/verify-keys.ts';

/** What an upload is held to: I3, I4, and one verdict on a signature for everybody, I9. */
export const uploadVerification: readonly Guard[] = [
  {
    name: 'keys-below-the-modulus',
    invariant: 'I3',
    what: 'An ML-KEM key is refused for any coefficient that is not reduced, also the second of each three bytes.',
    switchOff: [
      {
        file: keyChecks,
        find: "|| ((middle >> 4) | (high << 4)) >= kemModulus) return 'modulus';",
        replace: ") return 'modulus';",
      },
    ],
    test: {
      file: hostileKeys,
      name: 'are refused for one coefficient of 3329 to 4095 at any of the 768 positions (FIPS 203 §7.2)',
    },
  },
  {
    name: 'keys-of-the-prime-order-subgroup',
    invariant: 'I3',
    what: 'Identity, signing and root keys are refused when they have a part of small order.',
    switchOff: [
      {
        file: 'packages/crypto/src/torsion.ts',
        find: "return point.isTorsionFree() ? undefined : 'torsion';",
        replace: "return point.is0() ? 'torsion' : undefined;",
      },
    ],
    test: { file: 'services/identity-keys/test/hostile-keys.test.ts', name: 'is no key of mixed order' },
  },
  {
    name: 'subgroup-off-the-event-loop',
    invariant: 'I3',
    what: 'The subgroup of an uploaded key is checked by another thread, so that uploads do not hold up everybody else.',
    switchOff: [
      {
        file: 'packages/crypto/src/subgroup-checks.ts',
        find: "import type { Curve } from './torsion.ts';",
        replace: "import { type Curve, checkSubgroup } from './torsion.ts';",
      },
      {
        file: 'packages/crypto/src/subgroup-checks.ts',
        find: "(await checkInWorker('ed25519', publicKey))",
        replace: "checkSubgroup('ed25519', publicKey)",
      },
    ],
    test: {
      file: 'packages/crypto/test/off-the-event-loop.test.ts',
      name: 'the subgroup is never checked on the event loop: it is another thread that multiplies',
    },
  },
  {
    name: 'uploads-signed-by-stored-key',
    invariant: 'I3',
    what: 'New prekeys are verified with the signing key that the device registered, as that device (check in code).',
    switchOff: [
      {
        file: verification,
        find: 'const broken = signatures.filter((_, i) => !held[i]);',
        replace: 'const broken = signatures.filter((_, i) => held[i] === undefined);',
      },
    ],
    test: {
      file: uploads,
      name: 'are verified with the stored signing key: signed by another key, or for another device of the user, they are refused',
    },
  },
  {
    name: 'key-once-in-an-upload',
    invariant: 'I4',
    what: 'A key that stands in an upload twice is refused: under two ids it would be handed out twice (check in code).',
    switchOff: [{ file: verification, find: "(repeated.has(key) ? 'repeated' : undefined)", replace: 'undefined' }],
    test: {
      file: uploads,
      name: 'with one key under two ids, or as two kinds, is refused: it would be handed out twice',
    },
  },
  {
    name: 'one-equation-for-signatures',
    invariant: 'I9',
    what: 'Clients verify by the same equation as services, without the cofactor: a signature holds for all or for nobody.',
    switchOff: [
      {
        file: 'packages/crypto/src/noble-primitives.ts',
        find: 'return equalBytes(expected.toBytes(), encodedR);',
        replace: 'return equalBytes(expected.toBytes(), encodedR) || ed25519.verify(signature, text, publicKey);',
      },
    ],
    test: {
      file: 'packages/crypto/test/hostile-signatures.test.ts',
      name: 'are refused with an R outside the prime-order subgroup, though the equation with the cofactor holds',
    },
  },
  {
    name: 'no-nonce-point-of-small-order',
    invariant: 'I9',
    what: 'A signature whose R is of small order is refused, by services and clients.',
    switchOff: [
      {
        file: 'packages/crypto/src/signature-checks.ts',
        find: 'checkEd25519(signature.subarray(0, 32)) === undefined && ',
        replace: '',
      },
    ],
    test: {
      file: 'packages/crypto/test/hostile-signatures.test.ts',
      name: 'are refused with each R of small order, which who has the private key can make for any text',
    },
  },
];
