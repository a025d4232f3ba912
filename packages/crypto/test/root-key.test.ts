import {
  certifyDevice,
  createRootKey,
  decodeParts,
  noblePrimitives,
  openSealedRootKey,
  SealedRootKeyError,
  sealRootKeyToDevice,
  transcript,
} from '@keytrail/crypto';
import { nodePrimitives } from '@keytrail/crypto/node';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { certifiedAt, makeDevice } from './people.ts';

const primitives = nodePrimitives;
const phone = makeDevice(primitives, 'alice', 'phone');
const tablet = makeDevice(primitives, 'alice', 'tablet');
const linkSecret = primitives.randomBytes(32);
const request = { ...tablet.keys, kemPrekey: tablet.lastResortPrekey.upload, linkSecret };
const linking = {
  userId: 'alice',
  deviceId: 'tablet',
  identityKey: tablet.sealer.identityKey,
  signingKey: tablet.keys.signingKey,
  kemPrekey: tablet.lastResortPrekey,
  linkSecret,
};
const sealed = sealRootKeyToDevice(primitives, { rootKey: phone.rootKey, approver: phone.sealer, request });

describe('a root key sealed to a new device', () => {
  it('opens there, with the approver named, in either implementation', () => {
    for (const opening of [primitives, noblePrimitives]) {
      const opened = openSealedRootKey(opening, { sealed, device: linking });
      expect(opened).toEqual({ rootKey: phone.rootKey, approver: phone.keys });
    }
  });

  it('lets the new device certify the next one', () => {
    const { rootKey } = openSealedRootKey(primitives, { sealed, device: linking });
    const next = makeDevice(primitives, 'alice', 'watch');
    expect(certifyDevice(primitives, rootKey, next.keys, certifiedAt)).toEqual(
      certifyDevice(primitives, phone.rootKey, next.keys, certifiedAt),
    );
  });

  it('does not open with any bit changed, or cut', () => {
    fc.assert(
      fc.property(fc.nat({ max: sealed.length * 8 - 1 }), (bit) => {
        const bad = sealed.with(bit >> 3, (sealed[bit >> 3] ?? 0) ^ (1 << (bit & 7))) as Uint8Array;
        expect(() => openSealedRootKey(primitives, { sealed: bad, device: linking })).toThrow(SealedRootKeyError);
        const cut = sealed.slice(0, bit >> 3);
        expect(() => openSealedRootKey(primitives, { sealed: cut, device: linking })).toThrow(SealedRootKeyError);
      }),
      { numRuns: 200 },
    );
  });

  it('does not open by one who has not the link secret, or is another device', () => {
    const open = (other: Partial<typeof linking>) => () =>
      openSealedRootKey(primitives, { sealed, device: { ...linking, ...other } });
    expect(open({ linkSecret: primitives.randomBytes(32) })).toThrow('sealed root key: decrypt');
    expect(open({ identityKey: primitives.x25519.keyPair() })).toThrow('sealed root key: decrypt');
    expect(open({ signingKey: phone.keys.signingKey })).toThrow('sealed root key: decrypt');
    expect(open({ deviceId: 'watch' })).toThrow('sealed root key: recipient');
  });

  it('is refused when a stranger without the link secret offers a root key of its own', () => {
    const mallory = makeDevice(primitives, 'alice', 'phone', createRootKey(primitives));
    const guessed = { ...request, linkSecret: primitives.randomBytes(32) };
    const offered = sealRootKeyToDevice(primitives, {
      rootKey: mallory.rootKey,
      approver: mallory.sealer,
      request: guessed,
    });
    expect(() => openSealedRootKey(primitives, { sealed: offered, device: linking })).toThrow(
      'sealed root key: decrypt',
    );
  });

  it('is made for the same user only, and for a request that its device signed', () => {
    const seal = (other: Partial<typeof request>) => () =>
      sealRootKeyToDevice(primitives, {
        rootKey: phone.rootKey,
        approver: phone.sealer,
        request: { ...request, ...other },
      });
    expect(seal({ userId: 'bob' })).toThrow('sealed root key: recipient');
    expect(seal({ deviceId: 'watch' })).toThrow('recipient: kem-prekey');
    expect(seal({ kemPrekey: tablet.oneTimeKemPrekey.upload })).toThrow('recipient: kem-prekey');
    expect(seal({ identityKey: new Uint8Array(32) })).toThrow('recipient: key');
  });
});

describe('a transcript', () => {
  it('gives its parts back, so that two lists of parts never share one', () => {
    fc.assert(
      fc.property(fc.array(fc.uint8Array()), (parts) => {
        const [domain, ...rest] = decodeParts(transcript('keytrail/v1/test', ...parts)) ?? [];
        expect(new TextDecoder().decode(domain)).toBe('keytrail/v1/test');
        expect(rest).toEqual(parts);
      }),
    );
  });

  it('refuses what has no exact encoding', () => {
    for (const part of [-1, 1.5, 2 ** 53, -1n, 1n << 64n, '\ud800'])
      expect(() => transcript('test', part)).toThrow(RangeError);
  });

  it('is not read from bytes that are none', () => {
    for (const bytes of [Uint8Array.of(0), Uint8Array.of(0, 0, 0, 2, 1), Uint8Array.of(0, 0, 0, 0, 1)]) {
      expect(decodeParts(bytes)).toBeUndefined();
    }
  });
});
