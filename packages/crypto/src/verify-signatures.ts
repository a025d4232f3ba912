import { verify } from 'node:crypto';
import { checkEd25519 } from './key-checks.ts';
import { importEd25519PublicKey } from './node-primitives.ts';
import { isWellFormedSignature } from './signature-checks.ts';
import type { Statement } from './statement.ts';

/** How many verifications of one batch wait in the thread pool at once, so that other users of the pool get their turns. */
const inFlight = 16;

/**
 * Verifies Ed25519 signatures on the thread pool, off the event loop. The answers are in the order of the batch; a key or a signature of a
 * wrong length or form gives false, never an error.
 */
export async function verifySignatures(batch: readonly Statement[]): Promise<boolean[]> {
  const verdicts = new Array<boolean>(batch.length).fill(false);
  const rest = batch.entries();
  async function drain(): Promise<void> {
    for (const [i, statement] of rest) verdicts[i] = await verifyInPool(statement);
  }
  await Promise.all(Array.from({ length: Math.min(inFlight, batch.length) }, drain));
  return verdicts;
}

function verifyInPool({ publicKey, text, signature }: Statement): Promise<boolean> {
  if (checkEd25519(publicKey) !== undefined || !isWellFormedSignature(signature)) return Promise.resolve(false);
  return new Promise((resolve) => {
    verify(null, text, importEd25519PublicKey(publicKey), signature, (error, held) => resolve(error === null && held));
  });
}
