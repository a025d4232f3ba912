import {
  noblePrimitives,
  openEnvelope,
  sealEnvelope,
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
