import { concatBytes } from './bytes.ts';

/** A string is its UTF-8 bytes, an integer (0 to 2^64 - 1) is 8 bytes big-endian, bytes are themselves. */
export type Part = string | Uint8Array | bigint | number;

const utf8 = new TextEncoder();

/**
 * The one encoding of everything that is signed, hashed or bound: the domain and each part, with its length in bytes before it
 * (4 bytes, big-endian). Different lists of parts never give the same bytes, and the domain keeps one kind of text from being
 * taken for another (docs/wire-formats.md).
 *
 * @throws RangeError for an integer that does not fit, and for a string that is not well-formed Unicode.
 */
export function transcript(domain: string, ...parts: Part[]): Uint8Array {
  return encodeParts([domain, ...parts]);
}

/** `transcript` without the domain being told apart. */
export function encodeParts(parts: Part[]): Uint8Array {
  return concatBytes(...parts.flatMap((part) => withLength(toBytes(part))));
}

/** The parts of an encoding, the domain first; undefined when the bytes are not one. */
export function decodeParts(encoded: Uint8Array): Uint8Array[] | undefined {
  const parts: Uint8Array[] = [];
  const view = new DataView(encoded.buffer, encoded.byteOffset, encoded.byteLength);
  let at = 0;
  while (at < encoded.length) {
    if (at + 4 > encoded.length) return undefined;
    const end = at + 4 + view.getUint32(at);
    if (end > encoded.length) return undefined;
    parts.push(encoded.slice(at + 4, end));
    at = end;
  }
  return parts;
}

function withLength(bytes: Uint8Array): [Uint8Array, Uint8Array] {
  const length = new Uint8Array(4);
  new DataView(length.buffer).setUint32(0, bytes.length);
  return [length, bytes];
}

function toBytes(part: Part): Uint8Array {
  if (typeof part === 'string') {
    if (!part.isWellFormed()) throw new RangeError('a string is not well-formed Unicode');
    return utf8.encode(part);
  }
  return part instanceof Uint8Array ? part : uint64(part);
}

/** 8 bytes, big-endian. */
export function uint64(value: bigint | number): Uint8Array {
  if (typeof value === 'number' && !Number.isSafeInteger(value))
    throw new RangeError(`${value} is not an exact integer`);
  const exact = BigInt(value);
  if (exact < 0n || exact >= 1n << 64n) throw new RangeError(`${exact} does not fit into 64 bits`);
  const bytes = new Uint8Array(8);
  new DataView(bytes.buffer).setBigUint64(0, exact);
  return bytes;
}
