export { nodePrimitives } from './node-primitives.ts';
export { checkIdentityKey, checkSigningKey } from './subgroup-checks.ts';
export { verifySignatures } from './verify-signatures.ts';
