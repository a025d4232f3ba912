import { scryptSync } from 'node:crypto';
import {
  type LinkRequest,
  linkCode,
  linkCodeCost,
  linkCodeSalt,
  linkRequestTranscript,
  noblePrimitives,
  sameLinkCode,
} from '@keytrail/crypto';
import { nodePrimitives as primitives } from '@keytrail/crypto/node';
import { describe, expect, it } from 'vitest';
import { makeDevice } from './people.ts';

const tablet = makeDevice(primitives, 'alice', 'tablet');
const other = makeDevice(primitives, 'alice', 'tablet');
const linkSecret = primitives.randomBytes(32);
const request: LinkRequest = { ...tablet.keys, kemPrekey: tablet.lastResortPrekey.upload, linkSecret };

describe('a link code', () => {
  it('is 12 digits in 3 groups, stretched by scrypt at the documented cost, without holding up the event loop', async () => {
    let turns = 0;
    const ticking = setInterval(() => turns++, 1);
    const code = await linkCode(noblePrimitives, request);
    clearInterval(ticking);
    expect(await linkCode(primitives, request)).toBe(code);
    expect(turns).toBeGreaterThan(2);
    expect(code).toMatch(/^\d{4} \d{4} \d{4}$/);
    const { N, r, p } = linkCodeCost;
    const hash = scryptSync(linkRequestTranscript(request), linkCodeSalt(request), 8, { N, r, p, maxmem: 2 ** 28 });
    expect(code.replaceAll(' ', '')).toBe(String(hash.readBigUInt64BE() % 1_000_000_000_000n).padStart(12, '0'));
  });

  it('depends on every part of the request', () => {
    const changes: Partial<LinkRequest>[] = [
      { userId: 'bob' },
      { deviceId: 'watch' },
      { identityKey: other.keys.identityKey },
      { signingKey: other.keys.signingKey },
      { linkSecret: primitives.randomBytes(32) },
      { kemPrekey: { ...request.kemPrekey, keyId: 9 } },
      { kemPrekey: { ...request.kemPrekey, publicKey: other.lastResortPrekey.upload.publicKey } },
      { kemPrekey: { ...request.kemPrekey, signature: other.lastResortPrekey.upload.signature } },
    ];
    const texts = [{}, ...changes].map((change) =>
      Buffer.from(linkRequestTranscript({ ...request, ...change })).toString('hex'),
    );
    expect(new Set(texts).size).toBe(changes.length + 1);
  });

  it('is the same however it is typed, and no other', () => {
    expect(sameLinkCode('1234 5678 9012', '123456789012')).toBe(true);
    expect(sameLinkCode('1234 5678 9012', ' 1234-5678-9012 ')).toBe(true);
    for (const typed of ['1234 5678 9013', '', '1234 5678', '1234 5678 901x', '12345678901２']) {
      expect(sameLinkCode('1234 5678 9012', typed)).toBe(false);
    }
  });
});
