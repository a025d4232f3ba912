import type { Primitives } from '@keytrail/crypto';

export function equalBytes(a: Uint8Array, b: Uint8Array): boolean {
  return a.length === b.length && a.every((byte, index) => byte === b[index]);
}

const alphabet = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_';

/** Base64url without padding (RFC 4648 §5). */
export function toBase64Url(bytes: Uint8Array): string {
  let text = '';
  for (let at = 0; at < bytes.length; at += 3) {
    const rest = bytes.length - at;
    const three = ((bytes[at] ?? 0) << 16) | ((bytes[at + 1] ?? 0) << 8) | (bytes[at + 2] ?? 0);
    for (let place = 0; place < Math.min(rest, 3) + 1; place++) text += alphabet[(three >> (18 - 6 * place)) & 63];
  }
  return text;
}

/** Undefined for anything that `toBase64Url` would not have written. */
export function fromBase64Url(text: string): Uint8Array | undefined {
  const bytes = new Uint8Array(Math.floor((text.length * 3) / 4));
  let bits = 0;
  let held = 0;
  let at = 0;
  for (const char of text) {
    const value = alphabet.indexOf(char);
    if (value < 0) return undefined;
    held = ((held << 6) | value) & 0xffff;
    bits += 6;
    if (bits >= 8) {
      bits -= 8;
      bytes[at++] = (held >> bits) & 0xff;
    }
  }
  return toBase64Url(bytes) === text ? bytes : undefined;
}

export function toHex(bytes: Uint8Array): string {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');
}

/** A random UUID (version 4). */
export function randomUuid(primitives: Primitives): string {
  return uuidOf(primitives.randomBytes(16), 4);
}

/** The first 16 bytes as a UUID of the given version; 8 is for bytes that are a hash (RFC 9562 §5.8). */
export function uuidOf(bytes: Uint8Array, version: 4 | 8): string {
  const sixteen = bytes.slice(0, 16);
  sixteen[6] = ((sixteen[6] ?? 0) & 0x0f) | (version << 4);
  sixteen[8] = ((sixteen[8] ?? 0) & 0x3f) | 0x80;
  const hex = toHex(sixteen);
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join('-');
}

/** One device as a key of a map. Ids never contain a space. */
export function deviceKey(device: { readonly userId: string; readonly deviceId: string }): string {
  return `${device.userId} ${device.deviceId}`;
}

export function sameDevice(
  a: { readonly userId: string; readonly deviceId: string } | undefined,
  b: { readonly userId: string; readonly deviceId: string } | undefined,
): boolean {
  return a !== undefined && b !== undefined && a.userId === b.userId && a.deviceId === b.deviceId;
}
