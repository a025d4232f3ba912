import { type Statement, transcript } from '@keytrail/crypto';
import { nodePrimitives, verifySignatures } from '@keytrail/crypto/node';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { le32 } from './hex.ts';

const { ed25519 } = nodePrimitives;
const signer = ed25519.keyPair();

function statement(n: number): Statement {
  const text = transcript('test', n);
  return { publicKey: signer.publicKey, text, signature: ed25519.sign(signer.privateKey, text) };
}

const spoilt: ((good: Statement) => Statement)[] = [
  (good) => ({ ...good, text: transcript('test', 'other') }),
  (good) => ({ ...good, signature: good.signature.slice(1) }),
  (good) => ({ ...good, signature: new Uint8Array(64) }),
  (good) => ({ ...good, publicKey: new Uint8Array() }),
  (good) => ({ ...good, publicKey: new Uint8Array(32) }),
  (good) => ({ ...good, publicKey: le32(2n) }),
  (good) => ({ ...good, publicKey: ed25519.keyPair().publicKey }),
];

describe('a batch of signatures', () => {
  it('is answered in its order, whatever is wrong with some', async () => {
    const which = fc.array(fc.option(fc.nat({ max: spoilt.length - 1 })), { maxLength: 60 });
    await fc.assert(
      fc.asyncProperty(which, async (spoilers) => {
        const batch = spoilers.map((spoiler, i) => spoilt[spoiler ?? -1]?.(statement(i)) ?? statement(i));
        expect(await verifySignatures(batch)).toEqual(spoilers.map((spoiler) => spoiler === null));
      }),
      { numRuns: 20 },
    );
  });

  it('may be empty', async () => {
    expect(await verifySignatures([])).toEqual([]);
  });
});
