import { checkIdentityKey, checkSigningKey, nodePrimitives } from '@keytrail/crypto/node';
import { ED25519_TORSION_SUBGROUP, ed25519 } from '@noble/curves/ed25519.js';
import { expect, it, vi } from 'vitest';
import { checkSubgroup } from '../src/torsion.ts';

// Modules of the worker are its own: what stands here instead, and lets every key pass, is for this thread alone.
vi.mock('../src/torsion.ts', () => ({ checkSubgroup: vi.fn() }));

it('the subgroup is never checked on the event loop: it is another thread that multiplies', async () => {
  const torsion = ED25519_TORSION_SUBGROUP.map((encoded) => ed25519.Point.fromHex(encoded)).find((t) => !t.is0());
  const mixed = ed25519.Point.BASE.add(torsion ?? ed25519.Point.ZERO).toBytes();
  expect(await checkSigningKey(mixed)).toBe('torsion');
  expect(await checkIdentityKey(ed25519.utils.toMontgomery(mixed))).toBe('torsion');
  expect(await checkSigningKey(nodePrimitives.ed25519.keyPair().publicKey)).toBeUndefined();
  expect(checkSubgroup).not.toHaveBeenCalled();
});
