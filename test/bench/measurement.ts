/** One line of the result. */
export interface Row {
  readonly name: string;
  readonly value: number;
  readonly unit: 'requests/s' | 'claims/s' | 'uploads/s' | 'ms' | 'KiB' | '% of a core';
  /** The same by the bare program of the row; null where there is none. */
  readonly baseline: number | null;
  /** value / baseline. */
  readonly ratio: number | null;
}

/** What stands behind a row: spreads, processor time, counts. */
export type Details = Readonly<Record<string, unknown>>;

export interface Measured {
  readonly rows: readonly Row[];
  readonly details: Details;
  /** Rows without a value, and why; their details are there. */
  readonly refused?: Readonly<Record<string, string>>;
}

/** An answer that was not what it had to be: the row has no value then. */
export class WrongAnswers extends Error {
  override readonly name = 'WrongAnswers';
}

export function rowOf(name: string, unit: Row['unit'], value: number, baseline?: number): Row {
  if (baseline === undefined) return { name, value: rounded(value), unit, baseline: null, ratio: null };
  return { name, value: rounded(value), unit, baseline: rounded(baseline), ratio: rounded(value / baseline) };
}

/** The value below which the share `q` of the values lies (nearest rank). */
export function quantile(values: readonly number[], q: number): number {
  const sorted = [...values].sort((a, b) => a - b);
  const value = sorted[Math.max(0, Math.ceil(q * sorted.length) - 1)];
  if (value === undefined) throw new RangeError('no values');
  return value;
}

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  return ((sorted[(sorted.length - 1) >> 1] as number) + (sorted[sorted.length >> 1] as number)) / 2;
}

export function rounded(value: number): number {
  return Math.abs(value) >= 1000 ? Math.round(value) : Number(value.toPrecision(3));
}
