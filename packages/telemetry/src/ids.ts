const bytes = Array.from({ length: 256 }, (_, byte) => byte.toString(16).padStart(2, '0'));

/** Ids need no secrecy, only to differ: Math.random is ten times cheaper than node:crypto. */
function eightDigits(): string {
  const bits = (Math.random() * 0x1_0000_0000) >>> 0;
  return `${bytes[bits >>> 24]}${bytes[(bits >>> 16) & 255]}${bytes[(bits >>> 8) & 255]}${bytes[bits & 255]}`;
}

/** 16 hex digits, not all zero. */
export function newSpanId(): string {
  const id = eightDigits() + eightDigits();
  return id === '0000000000000000' ? newSpanId() : id;
}

/** 32 hex digits, not all zero. */
export function newTraceId(): string {
  return newSpanId() + newSpanId();
}
