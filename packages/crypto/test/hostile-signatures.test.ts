import { createHash } from 'node:crypto';
import { noblePrimitives, type Primitives } from '@keytrail/crypto';
import { checkSigningKey, nodePrimitives, verifySignatures } from '@keytrail/crypto/node';
import { ED25519_TORSION_SUBGROUP, ed25519 } from '@noble/curves/ed25519.js';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { hex, le32 } from './hex.ts';

const { Point } = ed25519;
type Point = typeof Point.BASE;
const groupOrder = Point.Fn.ORDER;
const fieldPrime = Point.Fp.ORDER;

const everyImplementation: [string, (key: Uint8Array, text: Uint8Array, signature: Uint8Array) => Promise<boolean>][] =
  [
    ['noble', verifyBy(noblePrimitives)],
    ['node', verifyBy(nodePrimitives)],
    [
      'the thread pool',
      async (publicKey, text, signature) => (await verifySignatures([{ publicKey, text, signature }]))[0] === true,
    ],
  ];

function verifyBy({ ed25519: { verify } }: Primitives) {
  return async (key: Uint8Array, text: Uint8Array, signature: Uint8Array) => verify(key, text, signature);
}

const smallA = 'c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa';
const mixedA = 'f7badec5b8abeaf699583992219b7b223f1df3fbbea919844e3f7c554a43dd43';
const otherMixedA = 'cdb267ce40c5cd45306fa5d2f29731459387dbf9eb933b7bd5aed9a765b88d4d';
const soundA = '442aad9f089ad9e14647b1ef9099a1ff4798d78589e66f28eca69c11f582a623';
const unreducedA = `ec${'ff'.repeat(31)}`;

/**
 * Chalkias, Garillot, Nikolaenko: "Taming the many EdDSAs" (IACR ePrint 2020/1244), table 5, with the bytes of the paper's own list
 * (ed25519-speccheck, cases.json). `why` is what this system refuses it for.
 */
const tamingTheManyEdDSAs: { n: number; why: string; message: string; key: string; signature: string }[] = [
  {
    n: 0,
    why: 'small-order key and R, S = 0',
    message: '8c93255d71dcab10e8f379c26200f3c7bd5f09d9bc3068d3ef4edeb4853022b6',
    key: smallA,
    signature: `c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a${'00'.repeat(32)}`,
  },
  {
    n: 1,
    why: 'small-order key',
    message: '9bd9f44f4dcc75bd531b56b2cd280b0bb38fc1cd6d1230e14861d861de092e79',
    key: smallA,
    signature:
      'f7badec5b8abeaf699583992219b7b223f1df3fbbea919844e3f7c554a43dd43a5bb704786be79fc476f91d3f3f89b03984d8068dcf1bb7dfc6637b45450ac04',
  },
  {
    n: 2,
    why: 'small-order R',
    message: 'aebf3f2601a0c8c5d39cc7d8911642f740b78168218da8471772b35f9d35b9ab',
    key: mixedA,
    signature:
      'c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa8c4bd45aecaca5b24fb97bc10ac27ac8751a7dfe1baff8b953ec9f5833ca260e',
  },
  {
    n: 4,
    why: 'holds with the cofactor only',
    message: 'e47d62c63f830dc7a6851a0b1f33ae4bb2f507fb6cffec4011eaccd55b53f56c',
    key: otherMixedA,
    signature:
      '160a1cb0dc9c0258cd0a7d23e94d8fa878bcb1925f2c64246b2dee1796bed5125ec6bc982a269b723e0668e540911a9a6a58921d6925e434ab10aa7940551a09',
  },
  {
    n: 5,
    why: 'holds with the cofactor only, when it is multiplied in before k is reduced',
    message: 'e47d62c63f830dc7a6851a0b1f33ae4bb2f507fb6cffec4011eaccd55b53f56c',
    key: otherMixedA,
    signature:
      '21122a84e0b5fca4052f5b1235c80a537878b38f3142356b2c2384ebad4668b7e40bc836dac0f71076f9abe3a53f9c03c1ceeeddb658d0030494ace586687405',
  },
  {
    n: 6,
    why: 'S ≥ L',
    message: '85e241a07d148b41e47d62c63f830dc7a6851a0b1f33ae4bb2f507fb6cffec40',
    key: soundA,
    signature:
      'e96f66be976d82e60150baecff9906684aebb1ef181f67a7189ac78ea23b6c0e547f7690a0e2ddcd04d87dbc3490dc19b3b3052f7ff0538cb68afb369ba3a514',
  },
  {
    n: 7,
    why: 'S far beyond L',
    message: '85e241a07d148b41e47d62c63f830dc7a6851a0b1f33ae4bb2f507fb6cffec40',
    key: soundA,
    signature:
      '8ce5b96c8f26d0ab6c47958c9e68b937104cd36e13c33566acd2fe8d38aa19427e71f98a473474f2f13f06f97c20d58cc3f54b8bd0d272f42b695dd7e89a8c22',
  },
  {
    n: 8,
    why: 'R not canonical',
    message: 'fdaebc429f4a735932a160da1301080c13280eea8bc280d1b392c6b9e6ba3a5a',
    key: mixedA,
    signature: `ed${'ff'.repeat(30)}7f454d370c8d9fc323a41450f8d513eafeb5b0697390c1e505a0d4ddc71f566607`,
  },
  {
    n: 9,
    why: 'R not canonical, the other hash',
    message: '84b698d39be126ff55fe45079e6c8bf64a0d7db6994560b4e96b7021eb39c1a1',
    key: mixedA,
    signature: `ed${'ff'.repeat(30)}7f084d5b99c2a9463d9c8bd5026916996984eeec87ddf1d3be329006ace1b37b09`,
  },
  {
    n: 10,
    why: 'key not canonical',
    message: 'e96b7021eb39c1a163b6da4e3093dcd3f21387da4cc4572be588fafae23c155b',
    key: unreducedA,
    signature:
      'a9d55260f765261eb9b84e106f665e00b867287a761990d7135963ee0a7d59dca5bb704786be79fc476f91d3f3f89b03984d8068dcf1bb7dfc6637b45450ac04',
  },
  {
    n: 11,
    why: 'key not canonical, the other hash',
    message: '39a591f5321bbe07fd5a23dc2f39d025d74526615746727ceefd6e82ae65c06f',
    key: unreducedA,
    signature:
      'a9d55260f765261eb9b84e106f665e00b867287a761990d7135963ee0a7d59dca5bb704786be79fc476f91d3f3f89b03984d8068dcf1bb7dfc6637b45450ac04',
  },
];

describe.each(everyImplementation)('signatures that are verified by %s', (_name, verify) => {
  it.each(tamingTheManyEdDSAs)('are refused: case $n of "Taming the many EdDSAs" ($why)', async (hostile) => {
    expect(await verify(hex(hostile.key), hex(hostile.message), hex(hostile.signature))).toBe(false);
  });

  it('hold with a mixed-order key that cancels out (case 3): such a key is refused where it comes in', async () => {
    const signature =
      '9046a64750444938de19f227bb80485e92b83fdb4b6506c160484c016cc1852f87909e14428a7a1d62e9f22f3d3ad7802db02eb2e688b6c52fcd6648a98bd009';
    const message = '9bd9f44f4dcc75bd531b56b2cd280b0bb38fc1cd6d1230e14861d861de092e79';
    expect(await verify(hex(otherMixedA), hex(message), hex(signature))).toBe(true);
    for (const key of [otherMixedA, mixedA]) expect(await checkSigningKey(hex(key))).toBe('torsion');
  });

  it('are refused with each R of small order, which who has the private key can make for any text', async () => {
    const signer = oddSigner(7n);
    const text = new TextEncoder().encode('text');
    for (const torsion of torsionPoints)
      expect(await verify(signer.publicKey, text, signer.sign(text, 0n, torsion))).toBe(false);
    expect(await verify(signer.publicKey, text, signer.sign(text, 11n, Point.ZERO))).toBe(true);
  });

  it('are refused with an R outside the prime-order subgroup, though the equation with the cofactor holds', async () => {
    const nonzero = fc.constantFrom(...torsionPoints.filter((point) => !point.is0()));
    const scalar = fc.bigInt({ min: 1n, max: groupOrder - 1n });
    await fc.assert(
      fc.asyncProperty(scalar, scalar, fc.uint8Array(), nonzero, async (secret, nonce, text, torsion) => {
        const signer = oddSigner(secret);
        const signature = signer.sign(text, nonce, torsion);
        expect(ed25519.verify(signature, text, signer.publicKey, { zip215: true })).toBe(true);
        expect(await verify(signer.publicKey, text, signature)).toBe(false);
      }),
      { numRuns: 20 },
    );
  });

  it('are refused with S + L, the same signature in another form', async () => {
    await fc.assert(
      fc.asyncProperty(fc.uint8Array({ minLength: 32, maxLength: 32 }), fc.uint8Array(), async (privateKey, text) => {
        const publicKey = nodePrimitives.ed25519.publicKey(privateKey);
        const signature = nodePrimitives.ed25519.sign(privateKey, text);
        expect(await verify(publicKey, text, signature)).toBe(true);
        const s = signature.slice(32).reduceRight((value, byte) => (value << 8n) | BigInt(byte), 0n);
        const malleated = Uint8Array.from([...signature.slice(0, 32), ...le32(s + groupOrder)]);
        expect(await verify(publicKey, text, malleated)).toBe(false);
      }),
      { numRuns: 20 },
    );
  });

  it('are refused under a key with y ≥ p, in each of its encodings', async () => {
    const text = new TextEncoder().encode('text');
    for (let y = fieldPrime; y < 1n << 255n; y += 1n) {
      for (const sign of [0n, 1n << 255n]) {
        const signature = Uint8Array.from([...Point.BASE.toBytes(), ...le32(1n)]);
        expect(await verify(le32(y | sign), text, signature)).toBe(false);
      }
    }
  });
});

const torsionPoints: Point[] = ED25519_TORSION_SUBGROUP.map((encoded) => Point.fromHex(encoded));

/** Signs with a nonce of its own choice, and R = nonce·B + torsion. */
function oddSigner(secret: bigint) {
  const publicKey = Point.BASE.multiply(secret).toBytes();
  return {
    publicKey,
    sign(text: Uint8Array, nonce: bigint, torsion: Point): Uint8Array {
      const encodedR = Point.BASE.multiplyUnsafe(nonce).add(torsion).toBytes();
      const digest = createHash('sha512').update(encodedR).update(publicKey).update(text).digest();
      const k = Point.Fn.create(digest.reduceRight((value, byte) => (value << 8n) | BigInt(byte), 0n));
      return Uint8Array.from([...encodedR, ...le32(Point.Fn.create(nonce + k * secret))]);
    },
  };
}
