import { createHmac, randomBytes } from 'node:crypto';

const generationSize = 10_000;

// Until a key is set pseudonyms hold for this process only, so that a forgotten key never shows ids.
let key: string | Uint8Array = randomBytes(32);
let recent = new Map<string, string>();
let older = new Map<string, string>();

/** Sets the key of all pseudonyms of this process. */
export function setPseudonymKey(value: string): void {
  if (value === key) return;
  key = value;
  recent = new Map();
  older = new Map();
}

/**
 * The pseudonym of a user or device id: 16 hex digits of HMAC-SHA-256 under KEYTRAIL_PSEUDONYM_KEY. Equal ids have equal
 * pseudonyms in all services that hold the same key. Remembered for at least the 10,000 ids used last.
 */
export function pseudonym(id: string): string {
  const known = recent.get(id);
  if (known !== undefined) return known;
  const value = older.get(id) ?? createHmac('sha256', key).update(id).digest('hex').slice(0, 16);
  if (recent.size >= generationSize) {
    older = recent;
    recent = new Map();
  }
  recent.set(id, value);
  return value;
}
