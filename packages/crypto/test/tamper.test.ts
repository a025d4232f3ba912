import { clone, create, type DescMessage, type Message } from '@bufbuild/protobuf';
import { reflect } from '@bufbuild/protobuf/reflect';
import {
  DeviceCertificateSchema,
  EnvelopeSchema,
  MessageSchema,
  PrekeyBundleSchema,
  PrekeyKind,
  WithheldReason,
  WithholdingSchema,
} from '@keytrail/contracts';
import {
  decryptMessage,
  EnvelopeError,
  encryptMessage,
  envelopeText,
  HeaderError,
  MessageError,
  openEnvelope,
  parseHeader,
  RecipientError,
  sealEnvelope,
  signWithholding,
  verifyBundle,
  verifyDevice,
  verifyDeviceCertificate,
  verifyEnvelope,
  verifyHeader,
  verifyStatement,
  withholdingStatement,
} from '@keytrail/crypto';
import { nodePrimitives as primitives } from '@keytrail/crypto/node';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { conversationId, makeDevice, makeSession } from './people.ts';

const alice = makeDevice(primitives, 'alice', 'phone');
const bob = makeDevice(primitives, 'bob', 'laptop');
const { session, signedHeader, sessionKey, ephemeralKey } = makeSession(primitives, alice);
const recipient = verifyBundle(primitives, bob.bundle, bob.rootKey.publicKey);
const rootKey = alice.rootKey.publicKey;
const sealing = { primitives, sealer: alice.sealer, recipient, session, sessionKey };
const envelope = sealEnvelope({ ...sealing, attempt: 0, ephemeralKey });
const resealed = sealEnvelope({ ...sealing, attempt: 1 });

/** The path of every field below a message, `certificate.certified_at.nanos` and the like. */
function paths(schema: DescMessage): string[] {
  return schema.fields.flatMap((field) =>
    field.fieldKind === 'message'
      ? [field.localName, ...paths(field.message).map((path) => `${field.localName}.${path}`)]
      : [field.localName],
  );
}

/** A copy in which the field at the path has another value: one bit, one more, one letter, or absent. */
function touched<T extends Message>(schema: DescMessage, message: T, path: string, nth: number): T {
  const copy = clone(schema, message) as T;
  touch(schema, copy, path.split('.'), nth);
  return copy;
}

function touch(schema: DescMessage, message: Message, [name, ...rest]: string[], nth: number): void {
  const field = schema.fields.find(({ localName }) => localName === name);
  if (field === undefined) throw new Error(`no field ${name}`);
  const at = reflect(schema, message);
  const record = message as unknown as Record<string, unknown>;
  const value = record[field.localName];
  if (field.fieldKind === 'message') {
    if (rest.length === 0) at.clear(field);
    else touch(field.message, value as Message, rest, nth);
  } else if (value instanceof Uint8Array) {
    record[field.localName] = flip(value, nth);
  } else if (typeof value === 'string') {
    record[field.localName] = `${value}${'x'.repeat(1 + (nth % 3))}`;
  } else {
    record[field.localName] = typeof value === 'bigint' ? value + BigInt(1 + (nth % 9)) : Number(value) + 1 + (nth % 9);
  }
}

function flip(bytes: Uint8Array, nth: number): Uint8Array {
  const flipped = bytes.slice();
  const bit = nth % (bytes.length * 8);
  flipped[bit >> 3] = (flipped[bit >> 3] ?? 0) ^ (1 << (bit & 7));
  return flipped;
}

const anyTouch = fc.nat({ max: 20_000 });
const runs = { numRuns: 6 };

describe('an envelope', () => {
  it.each(paths(EnvelopeSchema))('with another %s neither verifies nor opens', (path) => {
    fc.assert(
      fc.property(anyTouch, fc.constantFrom(envelope, resealed), (nth, good) => {
        const bad = touched(EnvelopeSchema, good, path, nth);
        expect(() => verifyEnvelope(primitives, { envelope: bad, ...session, rootKey })).toThrow(EnvelopeError);
        expect(() => verifyEnvelope(primitives, { envelope: bad, ...session })).toThrow(EnvelopeError);
        const opening = { primitives, envelope: bad, session, recipient: bob.opener, rootKey };
        expect(() => openEnvelope(opening)).toThrow(EnvelopeError);
      }),
      runs,
    );
  });

  it.each([
    ['conversationId', { conversationId: `${conversationId}0` }],
    ['sessionId', { sessionId: 'session-2' }],
    ['headerHash', { headerHash: flip(session.headerHash, 77) }],
  ])('is of one session: with another %s it does not verify', (_field, other) => {
    const elsewhere = { ...session, ...other };
    expect(() => verifyEnvelope(primitives, { envelope, ...elsewhere })).toThrow('envelope: signature');
  });

  it('that its sealer signed again after a change still does not decrypt', () => {
    const forged = touched(EnvelopeSchema, resealed, 'ciphertext', 5);
    expect(() => openEnvelope({ primitives, envelope: sign(forged), session, recipient: bob.opener, rootKey })).toThrow(
      'envelope: decrypt',
    );
    const otherAttempt = sign({ ...resealed, attempt: 2 });
    expect(() => openEnvelope({ primitives, envelope: otherAttempt, session, recipient: bob.opener, rootKey })).toThrow(
      'envelope: decrypt',
    );
  });
});

describe('a session header', () => {
  const initiator = { certificate: alice.sealer.certificate, rootKey };

  it('verifies as it was signed', () => {
    expect(verifyHeader(primitives, signedHeader, initiator, session)).toEqual(session);
  });

  it('with any other bit does not verify', () => {
    fc.assert(
      fc.property(anyTouch, fc.constantFrom('header', 'signature'), (nth, part) => {
        const bad = { ...signedHeader, [part]: flip(signedHeader[part as 'header' | 'signature'], nth) };
        expect(() => verifyHeader(primitives, bad, initiator)).toThrow(HeaderError);
      }),
      { numRuns: 300 },
    );
  });

  it('with bytes before, behind or missing does not verify, and random bytes are malformed', () => {
    const { header } = signedHeader;
    for (const bytes of [
      Uint8Array.of(...header, 0x78, 1),
      Uint8Array.of(0x78, 1, ...header),
      header.slice(1),
      header.slice(0, -1),
    ]) {
      expect(() => verifyHeader(primitives, { ...signedHeader, header: bytes }, initiator)).toThrow(HeaderError);
    }
    fc.assert(
      fc.property(fc.uint8Array(), (bytes) => {
        expect(() => parseHeader(bytes)).toThrow(HeaderError);
      }),
    );
  });

  it('is refused under another root key, and as another session', () => {
    const other = bob.rootKey.publicKey;
    expect(() => verifyHeader(primitives, signedHeader, { ...initiator, rootKey: other })).toThrow(
      'certificate (root-key)',
    );
    expect(() => verifyHeader(primitives, signedHeader, initiator, { epoch: 2n })).toThrow('mismatch (epoch)');
    expect(() => verifyHeader(primitives, signedHeader, initiator, { sessionId: 's' })).toThrow('mismatch (sessionId)');
    expect(() => verifyHeader(primitives, signedHeader, { certificate: undefined, rootKey })).toThrow(
      'certificate (malformed)',
    );
  });
});

describe('a device certificate', () => {
  const { certificate } = alice.sealer;

  it.each(paths(DeviceCertificateSchema))('with another %s does not verify', (path) => {
    fc.assert(
      fc.property(anyTouch, (nth) => {
        const bad = touched(DeviceCertificateSchema, certificate, path, nth);
        expect(() => verifyDeviceCertificate(primitives, alice.keys, bad, rootKey)).toThrow('device certificate');
        expect(() => verifyDeviceCertificate(primitives, alice.keys, bad, bad.rootKey)).toThrow('device certificate');
      }),
      runs,
    );
  });

  it('is of one device and its keys', () => {
    const { keys } = alice;
    for (const other of [
      { ...keys, userId: 'mallory' },
      { ...keys, deviceId: 'tablet' },
      { ...keys, identityKey: bob.keys.identityKey },
      { ...keys, signingKey: bob.keys.signingKey },
      { ...keys, userId: 'alicep', deviceId: 'hone' },
    ]) {
      expect(() => verifyDeviceCertificate(primitives, other, certificate, rootKey)).toThrow(
        'device certificate: signature',
      );
    }
  });
});

describe('a prekey bundle', () => {
  const pinned = bob.rootKey.publicKey;

  it.each(paths(PrekeyBundleSchema).filter((path) => !path.startsWith('oneTimePrekey')))(
    'with another %s is refused',
    (path) => {
      fc.assert(
        fc.property(anyTouch, (nth) => {
          const bad = touched(PrekeyBundleSchema, bob.bundle, path, nth);
          expect(() => verifyBundle(primitives, bad, pinned)).toThrow(RecipientError);
        }),
        runs,
      );
    },
  );

  it('cannot pass a one-time KEM prekey off as the last-resort one, nor the reverse', () => {
    const asLastResort = { ...bob.bundle, kemPrekeyKind: PrekeyKind.LAST_RESORT };
    expect(() => verifyBundle(primitives, asLastResort, pinned)).toThrow('recipient: kem-prekey');
    const asOneTime = { ...bob.bundle, kemPrekey: bob.lastResortPrekey.upload };
    expect(() => verifyBundle(primitives, asOneTime, pinned)).toThrow('recipient: kem-prekey');
    const listed = { ...bob.listed, lastResortPrekey: bob.oneTimeKemPrekey.upload };
    expect(() => verifyDevice(primitives, listed, pinned)).toThrow('recipient: kem-prekey');
  });

  it('under a root key that was not pinned is refused as that', () => {
    expect(() => verifyBundle(primitives, bob.bundle, rootKey)).toThrow('recipient: root-key');
  });
});

describe('a withholding', () => {
  const { signingKey } = alice.sealer;
  const withholding = signWithholding(primitives, signingKey, session, bob.keys, WithheldReason.UNCERTIFIED);

  it('verifies as it was signed', () => {
    expect(verifyStatement(primitives, withholdingStatement(withholding, session, signingKey.publicKey))).toBe(true);
  });

  it.each(paths(WithholdingSchema).filter((path) => path !== 'device'))('with another %s does not verify', (path) => {
    fc.assert(
      fc.property(anyTouch, (nth) => {
        const bad = touched(WithholdingSchema, withholding, path, nth);
        expect(verifyStatement(primitives, withholdingStatement(bad, session, signingKey.publicKey))).toBe(false);
      }),
      runs,
    );
  });
});

describe('a message', () => {
  const sender = { ...alice.keys, signingKey: alice.sealer.signingKey };
  const plaintext = new TextEncoder().encode('the eagle has landed');
  const sent = encryptMessage({ primitives, sessionKey, session, sender, senderCounter: 4n, plaintext });
  const { userId, deviceId } = sender;
  const message = create(MessageSchema, { ...sent, epoch: 1n, sender: { userId, deviceId } });
  const decrypting = { primitives, sessionKey, session, signingKey: alice.keys.signingKey };

  it('decrypts as it was sent', () => {
    expect(decryptMessage({ ...decrypting, message })).toEqual(plaintext);
  });

  const ofTheServer = ['sequence', 'sentAt', 'erasedAt'];
  const signed = paths(MessageSchema).filter((path) => !ofTheServer.includes(path.split('.')[0] ?? ''));
  it.each(signed)('with another %s does not decrypt', (path) => {
    fc.assert(
      fc.property(anyTouch, (nth) => {
        const bad = touched(MessageSchema, message, path, nth);
        expect(() => decryptMessage({ ...decrypting, message: bad })).toThrow(MessageError);
      }),
      runs,
    );
  });

  it('is of one session, sender and key', () => {
    const other = primitives.randomBytes(32);
    expect(() => decryptMessage({ ...decrypting, message, sessionKey: other })).toThrow('message: decrypt');
    expect(() => decryptMessage({ ...decrypting, message, signingKey: bob.keys.signingKey })).toThrow(
      'message: signature',
    );
    const view = { ...session, headerHash: flip(session.headerHash, 0) };
    expect(() => decryptMessage({ ...decrypting, message, session: view })).toThrow('message: signature');
  });

  it('of the same words and counter is different from every sender', () => {
    const asBob = encryptMessage({ ...decrypting, sender: bob.sealer, senderCounter: 4n, plaintext });
    expect(asBob.ciphertext).not.toEqual(sent.ciphertext);
  });
});

function sign(changed: typeof envelope): typeof envelope {
  const signature = primitives.ed25519.sign(alice.sealer.signingKey.privateKey, envelopeText(changed, session));
  return { ...changed, signature };
}
