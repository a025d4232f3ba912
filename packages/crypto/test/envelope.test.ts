import { create } from '@bufbuild/protobuf';
import { OneTimePrekeySchema, SignedPrekeySchema } from '@keytrail/contracts';
import {
  noblePrimitives,
  openEnvelope,
  sealEnvelope,
  sealingText,
  transcript,
  VerificationError,
  verifyBundle,
  verifyDevice,
  verifyHeader,
} from '@keytrail/crypto';
import { nodePrimitives } from '@keytrail/crypto/node';
import { describe, expect, it } from 'vitest';
import { makeDevice, makeSession } from './people.ts';

describe.each([
  ['noble', noblePrimitives, 'node', nodePrimitives],
  ['node', nodePrimitives, 'noble', noblePrimitives],
])('an envelope sealed with %s', (_from, sealing, to, opening) => {
  const alice = makeDevice(sealing, 'alice', 'phone');
  const bob = makeDevice(opening, 'bob', 'laptop');
  const { session, signedHeader, sessionKey, ephemeralKey } = makeSession(sealing, alice);

  it(`opens with ${to}, with a one-time prekey`, () => {
    const recipient = verifyBundle(sealing, bob.bundle, bob.rootKey.publicKey);
    const envelope = sealEnvelope({
      primitives: sealing,
      sealer: alice.sealer,
      recipient,
      session,
      attempt: 0,
      ephemeralKey,
      sessionKey,
    });
    const rootKey = alice.rootKey.publicKey;
    const verified = verifyHeader(opening, signedHeader, { certificate: envelope.sealerCertificate, rootKey });
    expect(openEnvelope({ primitives: opening, envelope, session: verified, recipient: bob.opener, rootKey })).toEqual(
      sessionKey,
    );
  });

  it(`opens with ${to}, sealed again without a claim`, () => {
    const recipient = verifyDevice(sealing, bob.listed, bob.rootKey.publicKey);
    const envelope = sealEnvelope({
      primitives: sealing,
      sealer: alice.sealer,
      recipient,
      session,
      attempt: 3,
      sessionKey,
    });
    const opened = openEnvelope({
      primitives: opening,
      envelope,
      session,
      recipient: bob.lastResortOpener,
      rootKey: alice.rootKey.publicKey,
    });
    expect(opened).toEqual(sessionKey);
  });
});

describe('an envelope', () => {
  const primitives = nodePrimitives;
  const alice = makeDevice(primitives, 'alice', 'phone');
  const bob = makeDevice(primitives, 'bob', 'laptop');
  const { session, sessionKey, ephemeralKey } = makeSession(primitives, alice);
  const recipient = verifyBundle(primitives, bob.bundle, bob.rootKey.publicKey);
  const sealing = { primitives, sealer: alice.sealer, recipient, session, attempt: 0, ephemeralKey, sessionKey };
  const envelope = sealEnvelope(sealing);
  const rootKey = alice.rootKey.publicKey;
  const opening = { primitives, envelope, session, recipient: bob.opener, rootKey };

  it('with another session key than the header commits to is told as that', () => {
    const wrong = sealEnvelope({ ...sealing, sessionKey: primitives.randomBytes(32) });
    expect(problemOf(() => openEnvelope({ ...opening, envelope: wrong }))).toBe('commitment');
  });

  it('of the same key in another epoch is told as that too', () => {
    const moved = { ...session, epoch: 2n };
    expect(problemOf(() => openEnvelope({ ...opening, session: moved }))).toBe('commitment');
  });

  it.each(['signedPrekey', 'oneTimePrekey', 'kemPrekey'] as const)(
    'whose %s is gone here is told as that',
    (prekey) => {
      const forgetful = { ...bob.opener, [prekey]: undefined };
      expect(problemOf(() => openEnvelope({ ...opening, recipient: forgetful }))).toBe('prekey-unknown');
    },
  );

  it.each(['signedPrekey', 'oneTimePrekey', 'kemPrekey', 'identityKey'] as const)(
    'needs the private key of %s',
    (key) => {
      const other = key === 'kemPrekey' ? primitives.mlKem768.keyPair() : primitives.x25519.keyPair();
      const guessed = {
        ...bob.opener[key],
        publicKey: bob.opener[key]?.publicKey ?? other.publicKey,
        privateKey: other.privateKey,
      };
      expect(problemOf(() => openEnvelope({ ...opening, recipient: { ...bob.opener, [key]: guessed } }))).toBe(
        'decrypt',
      );
    },
  );

  it('needs the private identity key of its sealer', () => {
    const identityKey = { ...alice.sealer.identityKey, privateKey: primitives.x25519.keyPair().privateKey };
    const forged = sealEnvelope({ ...sealing, sealer: { ...alice.sealer, identityKey } });
    expect(problemOf(() => openEnvelope({ ...opening, envelope: forged }))).toBe('decrypt');
  });

  it.each([true, false])('opens by hand, as docs/wire-formats.md says (with a one-time prekey: %s)', (withOneTime) => {
    const { x25519, mlKem768, aead, hkdfSha256, sha256 } = noblePrimitives;
    const to = withOneTime ? recipient : verifyDevice(primitives, bob.listed, bob.rootKey.publicKey);
    const kem = withOneTime ? bob.oneTimeKemPrekey : bob.lastResortPrekey;
    const sealed = sealEnvelope({ ...sealing, recipient: to });
    const text = sealingText({
      session,
      attempt: 0,
      sealer: alice.keys,
      recipient: bob.keys,
      ephemeralKey: ephemeralKey.publicKey,
      signedPrekey: bob.signedPrekey.upload,
      oneTimePrekey: withOneTime ? bob.oneTimePrekey.upload : undefined,
      kemPrekey: kem.upload,
      kemCiphertext: sealed.kemCiphertext,
    });
    const secret = (privateKey: Uint8Array, publicKey: Uint8Array) => x25519.sharedSecret(privateKey, publicKey) ?? [];
    const signedPrekey = bob.signedPrekey.keyPair.privateKey;
    const input = Uint8Array.of(
      ...new Uint8Array(32).fill(0xff),
      ...secret(signedPrekey, alice.keys.identityKey),
      ...secret(bob.opener.identityKey.privateKey, ephemeralKey.publicKey),
      ...secret(signedPrekey, ephemeralKey.publicKey),
      ...(withOneTime ? secret(bob.oneTimePrekey.keyPair.privateKey, ephemeralKey.publicKey) : []),
      ...mlKem768.decapsulate(kem.keyPair.privateKey, sealed.kemCiphertext),
    );
    const info = transcript('keytrail/v1/sealing-key', sha256(text));
    const derived = hkdfSha256(input, new Uint8Array(32), info, 44);
    expect(aead.open(derived.slice(0, 32), derived.slice(32), sealed.ciphertext, text)).toEqual(sessionKey);
  });

  it('for another device is told as that', () => {
    const other = { ...bob.opener, deviceId: 'tablet' };
    expect(problemOf(() => openEnvelope({ ...opening, recipient: other }))).toBe('recipient');
  });

  it('by a sealer whom the pinned root key does not certify is refused', () => {
    expect(problemOf(() => openEnvelope({ ...opening, rootKey: bob.rootKey.publicKey }))).toBe('certificate');
  });

  it('of attempt 0 is by the initiator alone, and with the ephemeral key of the header', () => {
    const byBob = sealEnvelope({ ...sealing, sealer: bob.sealer });
    expect(problemOf(() => openEnvelope({ ...opening, envelope: byBob, rootKey: bob.rootKey.publicKey }))).toBe(
      'sealer',
    );
    const fresh = sealEnvelope({ ...sealing, ephemeralKey: primitives.x25519.keyPair() });
    expect(problemOf(() => openEnvelope({ ...opening, envelope: fresh }))).toBe('sealer');
  });

  it('of a later attempt may be by any certified holder', () => {
    const carol = makeDevice(primitives, 'carol', 'phone');
    const resealed = sealEnvelope({ primitives, sealer: carol.sealer, recipient, session, attempt: 2, sessionKey });
    expect(openEnvelope({ ...opening, envelope: resealed, rootKey: carol.rootKey.publicKey })).toEqual(sessionKey);
  });

  it('may be to the sealing device itself', () => {
    const own = verifyBundle(primitives, alice.bundle, rootKey);
    const toSelf = sealEnvelope({ ...sealing, recipient: own });
    expect(openEnvelope({ ...opening, envelope: toSelf, recipient: alice.opener })).toEqual(sessionKey);
  });

  it('is never the same twice', () => {
    expect(sealEnvelope(sealing).ciphertext).not.toEqual(envelope.ciphertext);
  });

  it('needs the ephemeral key of the header for attempt 0, and 32 bytes to seal', () => {
    const { ephemeralKey: _, ...without } = sealing;
    expect(() => sealEnvelope(without)).toThrow(RangeError);
    expect(() => sealEnvelope({ ...sealing, sessionKey: new Uint8Array(31) })).toThrow(RangeError);
  });

  it.each(['identityKey', 'signedPrekey', 'oneTimePrekey'] as const)('is not sealed to a %s of low order', (field) => {
    const zero = new Uint8Array(32);
    const { bundle } = bob;
    const hostile =
      field === 'identityKey'
        ? { ...bundle, identityKey: zero }
        : {
            ...bundle,
            [field]: create(field === 'signedPrekey' ? SignedPrekeySchema : OneTimePrekeySchema, {
              keyId: 1,
              publicKey: zero,
            }),
          };
    expect(problemOf(() => verifyBundle(primitives, hostile, bob.rootKey.publicKey))).toBe('key');
  });
});

function problemOf(work: () => unknown): string | undefined {
  try {
    work();
  } catch (error) {
    if (error instanceof VerificationError) return error.problem;
    throw error;
  }
  return undefined;
}
