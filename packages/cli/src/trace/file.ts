import { createReadStream } from 'node:fs';
import { readTraceText, type TraceSpan } from '@keytrail/traces';
import { UsageError } from '../exit-codes.ts';

const maxBytes = 256 * 2 ** 20;

/** The spans of a file, `-` for stdin. Throws UsageError when it cannot be read, MalformedTrace when it is no trace. */
export async function readTraceFile(path: string): Promise<TraceSpan[]> {
  return readTraceText(await readBounded(path));
}

async function readBounded(path: string): Promise<string> {
  const chunks: Buffer[] = [];
  let bytes = 0;
  try {
    for await (const chunk of path === '-' ? process.stdin : createReadStream(path)) {
      bytes += (chunk as Buffer).length;
      if (bytes > maxBytes) throw new UsageError(`the file has more than ${maxBytes} bytes`);
      chunks.push(chunk as Buffer);
    }
  } catch (error) {
    if (error instanceof UsageError) throw error;
    throw new UsageError(`the file cannot be read: ${(error as NodeJS.ErrnoException).code ?? 'unknown'}`);
  }
  return Buffer.concat(chunks).toString('utf8');
}
