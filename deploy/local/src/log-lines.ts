import { closeSync, fstatSync, openSync, readFileSync, readSync, statSync } from 'node:fs';
import { lastLines } from './run-command.ts';

/** One line of JSON that a service printed. */
export type JsonLine = Readonly<Record<string, unknown>>;

/** The end of a log file, for error messages; '' when there is none. */
export function tailOf(logFile: string, lines = 20): string {
  try {
    return lastLines(readFileSync(logFile, 'utf8'), lines);
  } catch {
    return '';
  }
}

/** Size of a file in bytes, 0 when it is missing. */
export function sizeOf(file: string): number {
  return statSync(file, { throwIfNoEntry: false })?.size ?? 0;
}

/**
 * Reads the JSON lines that are appended to a log file. A file and not a pipe, because a detached process must be able
 * to go on printing after its starter has ended.
 */
export class JsonLineReader {
  readonly #file: string;
  #offset: number;
  #rest = Buffer.alloc(0);
  readonly #lines: JsonLine[] = [];

  constructor(file: string, offset: number) {
    this.#file = file;
    this.#offset = offset;
  }

  /** All complete JSON lines up to now, oldest first. */
  read(): readonly JsonLine[] {
    const text = Buffer.concat([this.#rest, this.#readNew()]);
    const end = text.lastIndexOf(0x0a) + 1;
    this.#rest = text.subarray(end);
    for (const line of text.toString('utf8', 0, end).split('\n')) {
      const parsed = parseJsonLine(line);
      if (parsed !== undefined) this.#lines.push(parsed);
    }
    return this.#lines;
  }

  #readNew(): Buffer {
    let file: number;
    try {
      file = openSync(this.#file, 'r');
    } catch {
      return Buffer.alloc(0);
    }
    try {
      const bytes = Buffer.alloc(Math.max(0, fstatSync(file).size - this.#offset));
      const length = readSync(file, bytes, 0, bytes.length, this.#offset);
      this.#offset += length;
      return bytes.subarray(0, length);
    } finally {
      closeSync(file);
    }
  }
}

function parseJsonLine(line: string): JsonLine | undefined {
  if (!line.startsWith('{')) return undefined;
  try {
    return JSON.parse(line) as JsonLine;
  } catch {
    return undefined;
  }
}
