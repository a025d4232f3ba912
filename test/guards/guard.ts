export type Invariant = 'I1' | 'I2' | 'I3' | 'I4' | 'I5' | 'I6' | 'I7' | 'I8' | 'I9' | 'I10';

/** A replacement of a text that stands exactly once in its file. */
export interface Edit {
  readonly file: string;
  readonly find: string;
  readonly replace: string;
}

/** A guard of an invariant: what to take out of the code or the schema, and the test that must notice. */
export interface Guard {
  readonly name: string;
  /** As docs/invariants.md numbers them. */
  readonly invariant: Invariant;
  /** What the guard does, in one sentence. */
  readonly what: string;
  /** Replacements that switch the guard off, and leave code that loads and SQL that applies. */
  readonly switchOff: readonly Edit[];
  readonly test: {
    readonly file: string;
    /** Full name of one test, or its end. */
    readonly name: string;
    /** Without the guard, something never comes: the test is red by its time limit, not by an assertion. */
    readonly hangs?: true;
  };
}
