import { noblePrimitives } from '@keytrail/crypto';
import { nodePrimitives } from '@keytrail/crypto/node';
import { shake128 } from '@noble/hashes/sha3.js';
import { ml_kem768 } from '@noble/post-quantum/ml-kem.js';
import { describe, expect, it } from 'vitest';
import { hex } from './hex.ts';

describe.each([
  ['noble', noblePrimitives],
  ['node', nodePrimitives],
])('%s primitives', (_name, { x25519, ed25519, mlKem768, hkdfSha256, sha256, aead }) => {
  it('multiply as RFC 7748 §5.2 does', () => {
    const scalar = hex('a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4');
    const u = hex('e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c');
    const product = 'c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552';
    expect(x25519.sharedSecret(scalar, u)).toEqual(hex(product));
  });

  it('ignore the top bit of a u-coordinate, as RFC 7748 §5.2 does', () => {
    const scalar = hex('4b66e9d4d1b4673c5ad22691957d6af5c11b6421e0ea01d42ca4169e7918ba0d');
    const u = hex('e5210f12786811d3f4b7959d0538ae2c31dbe7106fc03c3efc4cd549c715a493');
    const product = '95cbde9476e8907d7aade45cb4b873f88b595a68799fa152e6f8f7647aac7957';
    expect(x25519.sharedSecret(scalar, u)).toEqual(hex(product));
  });

  it('iterate as RFC 7748 §5.2 does, 1,000 times', () => {
    let k: Uint8Array = hex(`09${'00'.repeat(31)}`);
    let u = k;
    for (let i = 0; i < 1000; i++) {
      const next = x25519.sharedSecret(k, u);
      if (next === undefined) throw new Error('all zero');
      u = k;
      k = next;
      if (i === 0) expect(k).toEqual(hex('422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079'));
    }
    expect(k).toEqual(hex('684cf59ba83309552800ef566f2f4d3c1c3887c49360e3875f2eb94d99532c51'));
  });

  it('agree on a secret as RFC 7748 §6.1 does', () => {
    const alice = hex('77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a');
    const bob = hex('5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb');
    expect(x25519.publicKey(alice)).toEqual(hex('8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a'));
    expect(x25519.publicKey(bob)).toEqual(hex('de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f'));
    const secret = hex('4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742');
    expect(x25519.sharedSecret(alice, x25519.publicKey(bob))).toEqual(secret);
    expect(x25519.sharedSecret(bob, x25519.publicKey(alice))).toEqual(secret);
  });

  it.each(ed25519Vectors)('sign as RFC 8032 §7.1 does: $name', ({ secret, key, message, signature }) => {
    expect(ed25519.publicKey(hex(secret))).toEqual(hex(key));
    expect(ed25519.sign(hex(secret), hex(message))).toEqual(hex(signature));
    expect(ed25519.verify(hex(key), hex(message), hex(signature))).toBe(true);
    expect(ed25519.verify(hex(key), hex(`${message}00`), hex(signature))).toBe(false);
  });

  it.each(hkdfVectors)('derive as RFC 5869 appendix A does: $name', ({ ikm, salt, info, okm }) => {
    expect(hkdfSha256(hex(ikm), hex(salt), hex(info), okm.length / 2)).toEqual(hex(okm));
  });

  it('hash as FIPS 180 does', () => {
    const digest = 'ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad';
    expect(sha256(new TextEncoder().encode('abc'))).toEqual(hex(digest));
  });

  it('encrypt as RFC 8439 §2.8.2 does', () => {
    const key = hex('808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9f');
    const nonce = hex('070000004041424344454647');
    const associatedData = hex('50515253c0c1c2c3c4c5c6c7');
    const plaintext = new TextEncoder().encode(
      "Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, sunscreen would be it.",
    );
    const ciphertext = hex(`
      d31a8d34648e60db7b86afbc53ef7ec2a4aded51296e08fea9e2b5a736ee62d63dbea45e8ca9671282fafb69da92728b
      1a71de0a9e060b2905d6a5b67ecd3b3692ddbd7f2d778b8c9803aee328091b58fab324e4fad675945585808b4831d7bc
      3ff4def08e4b7a9de576d26586cec64b6116 1ae10b594f09e26a7e902ecbd0600691`);
    expect(aead.seal(key, nonce, plaintext, associatedData)).toEqual(ciphertext);
    expect(aead.open(key, nonce, ciphertext, associatedData)).toEqual(plaintext);
    expect(aead.open(key, nonce, ciphertext, associatedData.slice(1))).toBeUndefined();
  });

  // C2SP CCTV, ML-KEM "accumulated" vectors: one hash over 100 keys, encapsulations and (implicitly rejected) decapsulations.
  it('make keys and decapsulate as the accumulated ML-KEM-768 vectors of C2SP do', () => {
    const random = shake128.create();
    const all = shake128.create({ dkLen: 32 });
    for (let i = 0; i < 100; i++) {
      const seed = random.xof(64);
      const publicKey = mlKem768.publicKey(seed);
      const { cipherText, sharedSecret } = ml_kem768.encapsulate(publicKey, random.xof(32));
      expect(mlKem768.decapsulate(seed, cipherText)).toEqual(sharedSecret);
      all.update(publicKey).update(cipherText).update(sharedSecret);
      all.update(mlKem768.decapsulate(seed, random.xof(1088)));
    }
    expect(all.digest()).toEqual(hex('1114b1b6699ed191734fa339376afa7e285c9e6acf6ff0177d346696ce564415'));
  });
});

const ed25519Vectors = [
  {
    name: 'TEST 1',
    secret: '9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60',
    key: 'd75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a',
    message: '',
    signature:
      'e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b',
  },
  {
    name: 'TEST 2',
    secret: '4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb',
    key: '3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c',
    message: '72',
    signature:
      '92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00',
  },
  {
    name: 'TEST 3',
    secret: 'c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7',
    key: 'fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025',
    message: 'af82',
    signature:
      '6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a',
  },
];

const hkdfVectors = [
  {
    name: 'A.1',
    ikm: '0b'.repeat(22),
    salt: '000102030405060708090a0b0c',
    info: 'f0f1f2f3f4f5f6f7f8f9',
    okm: '3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865',
  },
  {
    name: 'A.3',
    ikm: '0b'.repeat(22),
    salt: '',
    info: '',
    okm: '8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8',
  },
];
