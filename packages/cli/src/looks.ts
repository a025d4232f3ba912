interface Bounds {
  readonly atOnce: number;
  /** By performance.now(): none is begun later. */
  readonly until: number;
}

/** Answers in the order of `places`; undefined where none was asked for, as it got too late. */
export async function lookAtAll<P, A>(
  places: readonly P[],
  look: (place: P) => Promise<A>,
  { atOnce, until }: Bounds,
): Promise<(A | undefined)[]> {
  const answers: (A | undefined)[] = places.map(() => undefined);
  let begun = 0;
  const work = async () => {
    while (begun < places.length && performance.now() < until) {
      const at = begun;
      begun += 1;
      answers[at] = await look(places[at] as P);
    }
  };
  await Promise.all(Array.from({ length: atOnce }, work));
  return answers;
}
