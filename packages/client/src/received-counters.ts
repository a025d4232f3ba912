/** Numbers that were seen, as ranges: ascending, and apart from each other. */
export type CounterRanges = readonly { readonly first: bigint; readonly last: bigint }[];

/** A sender leaves gaps where it gave messages up. One that leaves more has the lowest of them closed: what comes of them later counts as seen. */
const rangesAtMost = 1_000;

export function hasCounter(ranges: CounterRanges, counter: bigint): boolean {
  return ranges.some(({ first, last }) => first <= counter && counter <= last);
}

export function withCounter(ranges: CounterRanges, counter: bigint): CounterRanges {
  if (hasCounter(ranges, counter)) return ranges;
  const merged: { first: bigint; last: bigint }[] = [];
  const all = [...ranges, { first: counter, last: counter }].sort((a, b) => (a.first < b.first ? -1 : 1));
  for (const { first, last } of all) {
    const before = merged.at(-1);
    if (before !== undefined && before.last + 1n === first) before.last = last;
    else merged.push({ first, last });
  }
  const [lowest, next, ...rest] = merged;
  if (merged.length <= rangesAtMost || lowest === undefined || next === undefined) return merged;
  return [{ first: lowest.first, last: next.last }, ...rest];
}
