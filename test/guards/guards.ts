/** A guard of an invariant: what to take out of the code or the schema, and the test that must notice. */
export interface Guard {
  readonly name: string;
  /** I1 to I10 of docs/invariants.md. */
  readonly invariant: string;
  /** What the guard does, in one sentence. */
  readonly what: string;
  /** Replacements that switch the guard off; each text must be there exactly once. */
  readonly switchOff: readonly { readonly file: string; readonly find: string; readonly replace: string }[];
  readonly test: { readonly file: string; readonly name: string };
}

export const guards: readonly Guard[] = [];
