/** Thrown when a body is not what its format says; `problem` names the place and what is wrong there. */
export class MalformedTrace extends Error {
  readonly format: string;
  readonly problem: string;

  constructor(format: string, problem: string) {
    super(`not ${format}: ${problem}`);
    this.name = 'MalformedTrace';
    this.format = format;
    this.problem = problem;
  }
}

export type Fields = Readonly<Record<string, unknown>>;

/** Reads parts of a body of one format, and names the place where one is not as it should be. */
export class BodyReader {
  readonly #fail: (problem: string) => MalformedTrace;

  constructor(fail: (problem: string) => MalformedTrace) {
    this.#fail = fail;
  }

  wrong(problem: string): MalformedTrace {
    return this.#fail(problem);
  }

  fields(value: unknown, place: string): Fields {
    if (typeof value !== 'object' || value === null || Array.isArray(value))
      throw this.#fail(`${place} is not an object`);
    return value as Fields;
  }

  list(value: unknown, place: string): readonly unknown[] {
    if (!Array.isArray(value)) throw this.#fail(`${place} is not a list`);
    return value;
  }

  /** Hex digits, or base64 of the same bytes, which is how some backends write ids; lower-case hex digits are given. */
  id(value: unknown, bytes: number, place: string): string {
    if (typeof value === 'string') {
      if (value.length === bytes * 2 && /^[0-9a-f]+$/i.test(value)) return value.toLowerCase();
      if (value.length === Math.ceil(bytes / 3) * 4 && /^[0-9a-z+/]+=*$/i.test(value)) {
        const decoded = Buffer.from(value, 'base64');
        if (decoded.length === bytes) return decoded.toString('hex');
      }
    }
    throw this.#fail(`${place} is not ${bytes * 2} hex digits`);
  }

  nanos(value: unknown, place: string): bigint {
    if (typeof value === 'number' && Number.isFinite(value) && value >= 0) return BigInt(Math.trunc(value));
    if (typeof value === 'string' && /^\d{1,20}$/.test(value)) return BigInt(value);
    throw this.#fail(`${place}, a time, is not a number of nanoseconds`);
  }

  number(value: unknown, place: string): number {
    if (typeof value === 'number' && Number.isFinite(value)) return value;
    throw this.#fail(`${place} is not a number`);
  }
}
