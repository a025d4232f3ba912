/** The first items, up to `limit` of them and up to `mostWeight` together, but at least one. */
export function takeWhileFits<T>(
  items: readonly T[],
  limit: number,
  weightOf: (item: T) => number,
  mostWeight: number,
): T[] {
  let weight = 0;
  const end = items.findIndex((item, index) => {
    weight += weightOf(item);
    return index > 0 && (index >= limit || weight > mostWeight);
  });
  return items.slice(0, end < 0 ? items.length : end);
}
