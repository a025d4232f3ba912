import { readFileSync } from 'node:fs';
import type { Environment } from '../connection.ts';
import { UsageError } from '../exit-codes.ts';

/**
 * Headers for a backend, one `Name: value` per line, from a file or KEYTRAIL_TRACE_HEADERS: never from an argument, as they hold credentials. Throws
 * UsageError, which never tells a value.
 */
export function readHeaders(file: string | undefined, environment: Environment): Record<string, string> {
  const text = file === undefined ? (environment.KEYTRAIL_TRACE_HEADERS ?? '') : readHeadersFile(file);
  const headers: Record<string, string> = {};
  for (const [at, line] of text.split(/\r?\n/).entries()) {
    if (line.trim() === '' || line.startsWith('#')) continue;
    const [, name, value] = /^([A-Za-z0-9-]+):\s*([\t\x20-\x7e]+?)\s*$/.exec(line) ?? [];
    if (name === undefined || value === undefined)
      throw new UsageError(`line ${at + 1} of the headers is not like "Name: value"`);
    headers[name.toLowerCase()] = value;
  }
  return headers;
}

function readHeadersFile(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch (error) {
    throw new UsageError(`the headers file cannot be read: ${(error as NodeJS.ErrnoException).code ?? 'unknown'}`);
  }
}
