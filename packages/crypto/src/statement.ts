import type { Primitives } from './primitives.ts';

/** A text, who is said to have signed it (32 bytes, Ed25519), and the signature (64 bytes). */
export interface Statement {
  readonly publicKey: Uint8Array;
  readonly text: Uint8Array;
  readonly signature: Uint8Array;
}

export function verifyStatement(primitives: Primitives, statement: Statement): boolean {
  return primitives.ed25519.verify(statement.publicKey, statement.text, statement.signature);
}
