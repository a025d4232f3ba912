import { Buffer } from 'node:buffer';

/** Plain data as bytes: JSON, with a tag where JSON has no word for it. Undefined fields are left out. */
export function encodePlain(value: unknown): Uint8Array {
  return new TextEncoder().encode(JSON.stringify(tagged(value)));
}

export function decodePlain(bytes: Uint8Array): unknown {
  return untagged(JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes)));
}

const tags = {
  $bytes: (text: string) => new Uint8Array(Buffer.from(text, 'base64')),
  $bigint: (text: string) => BigInt(text),
  $date: (ms: number) => new Date(ms),
} as const;

function tagged(value: unknown): unknown {
  if (value instanceof Uint8Array)
    return { $bytes: Buffer.from(value.buffer, value.byteOffset, value.length).toString('base64') };
  if (typeof value === 'bigint') return { $bigint: String(value) };
  if (value instanceof Date) return { $date: value.getTime() };
  if (Array.isArray(value)) return value.map(tagged);
  if (typeof value !== 'object' || value === null) return value;
  return Object.fromEntries(Object.entries(value).map(([name, field]) => [name, tagged(field)]));
}

function untagged(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(untagged);
  if (typeof value !== 'object' || value === null) return value;
  const entries = Object.entries(value);
  const [tag, content] = entries[0] ?? [];
  if (entries.length === 1 && tag !== undefined && tag in tags) return tags[tag as keyof typeof tags](content as never);
  return Object.fromEntries(entries.map(([name, field]) => [name, untagged(field)]));
}
