/** Slots of a Redis Cluster. */
const slotCount = 16_384;
/** Ranges of slots that have a canary each; a node of a cluster owns many of them, or a part of one. */
export const rangeCount = 16;

/** The slot of a key in a Redis Cluster: CRC-16/XMODEM of its hash tag, else of the whole key, modulo 16384. */
export function slotOf(key: string): number {
  const open = key.indexOf('{');
  const close = open < 0 ? -1 : key.indexOf('}', open + 1);
  const hashed = close > open + 1 ? key.slice(open + 1, close) : key;
  let crc = 0;
  for (const byte of new TextEncoder().encode(hashed)) {
    crc ^= byte << 8;
    for (let bit = 0; bit < 8; bit += 1) crc = crc & 0x8000 ? ((crc << 1) ^ 0x1021) & 0xffff : (crc << 1) & 0xffff;
  }
  return crc % slotCount;
}

/** The range that a key's slot lies in, from 0 on. */
export function rangeOf(key: string): number {
  return Math.floor((slotOf(key) * rangeCount) / slotCount);
}

/** For each range, a key that lies in it: the first `<prefix>{<number>}` that does. */
export function keyInEachRange(prefix: string): string[] {
  const keys: string[] = [];
  for (let number = 0, found = 0; found < rangeCount; number += 1) {
    const key = `${prefix}{${number}}`;
    const range = rangeOf(key);
    if (keys[range] !== undefined) continue;
    keys[range] = key;
    found += 1;
  }
  return keys;
}
