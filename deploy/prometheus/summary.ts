/** One run of a program, or one that had none to run. */
export interface Checked {
  readonly what: string;
  readonly ended: 'ok' | 'failed' | 'not checked';
}

/** The last line of `make check-sre`: a skip far above it is overlooked, and nothing that failed may have been looked at. */
export function summaryOf(all: readonly Checked[]): string {
  const count = (ended: Checked['ended']) => all.filter((each) => each.ended === ended).length;
  const unchecked = all.filter(({ ended }) => ended === 'not checked').map(({ what }) => what);
  const told = `${count('ok')} ok, ${count('failed')} failed`;
  if (unchecked.length === 0) return told;
  const what = unchecked.length === all.length ? 'NOTHING WAS CHECKED' : `NOT CHECKED: ${unchecked.join(', ')}`;
  return `${told}, ${unchecked.length} skipped. ${what}; why stands above`;
}
