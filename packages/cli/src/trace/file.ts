import { createReadStream } from 'node:fs';
import { readLoss, readTraceText, type TraceLoss, type TraceSpan } from '@keytrail/traces';
import { UsageError } from '../exit-codes.ts';

const maxBytes = 256 * 2 ** 20;

export interface TraceFile {
  readonly spans: readonly TraceSpan[];
  /** What it says that they lack, where it is what a backend answered. */
  readonly loss: TraceLoss;
}

/** What a file holds, `-` for stdin. Throws UsageError when it cannot be read, MalformedTrace when it is no trace. */
export async function readTraceFile(path: string): Promise<TraceFile> {
  const text = await readBounded(path);
  return { spans: readTraceText(text), loss: readLoss(text) };
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
