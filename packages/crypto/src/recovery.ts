import { equalBytes } from './bytes.ts';
import { expectLength, type KeyPair, lengths, type Primitives, suite } from './primitives.ts';
import { RecoveryError } from './problems.ts';
import { transcript } from './transcript.ts';

/** Whose root key is sealed, and its public half (32 bytes, Ed25519). */
export interface RecoverySubject {
  readonly userId: string;
  readonly rootKey: Uint8Array;
}

/** The associated data of a root key that is sealed for recovery; its hash is in the key. */
export function recoverySealingText({ userId, rootKey }: RecoverySubject): Uint8Array {
  return transcript('keytrail/v1/recovery', suite, userId, rootKey);
}

/** The key and the nonce that a recovery key gives for one root key of one user. */
export function recoverySealingKey(primitives: Primitives, recoveryKey: Uint8Array, text: Uint8Array) {
  const info = transcript('keytrail/v1/recovery-sealing-key', primitives.sha256(text));
  const derived = primitives.hkdfSha256(recoveryKey, new Uint8Array(32), info, 44);
  return { key: derived.slice(0, 32), nonce: derived.slice(32) };
}

/** A new recovery key: 32 random bytes. `recoveryKeyText` is how people keep it. */
export function createRecoveryKey(primitives: Primitives): Uint8Array {
  return primitives.randomBytes(32);
}

/** Seals a user's root key by a recovery key (32 bytes): 48 bytes, for SetRecovery. The same input gives the same bytes. */
export function sealRecovery(
  primitives: Primitives,
  { recoveryKey, userId, rootKey }: { recoveryKey: Uint8Array; userId: string; rootKey: KeyPair },
): Uint8Array {
  expectLength(recoveryKey, 32, 'recovery key');
  const text = recoverySealingText({ userId, rootKey: rootKey.publicKey });
  const { key, nonce } = recoverySealingKey(primitives, recoveryKey, text);
  return primitives.aead.seal(key, nonce, rootKey.privateKey, text);
}

/**
 * Opens what `sealRecovery` sealed.
 *
 * @throws RecoveryError.
 */
export function openRecovery(
  primitives: Primitives,
  { recoveryKey, userId, rootKey, sealed }: RecoverySubject & { recoveryKey: Uint8Array; sealed: Uint8Array },
): KeyPair {
  expectLength(recoveryKey, 32, 'recovery key');
  if (sealed.length !== 48) throw new RecoveryError('malformed', 'sealed_root_key');
  if (rootKey.length !== lengths.ed25519Key) throw new RecoveryError('malformed', 'root_key');
  const text = recoverySealingText({ userId, rootKey });
  const { key, nonce } = recoverySealingKey(primitives, recoveryKey, text);
  const privateKey = primitives.aead.open(key, nonce, sealed, text);
  if (privateKey === undefined) throw new RecoveryError('decrypt');
  if (!equalBytes(primitives.ed25519.publicKey(privateKey), rootKey)) throw new RecoveryError('root-key');
  return { publicKey: rootKey, privateKey };
}
