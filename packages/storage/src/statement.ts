/** A hand-written SQL statement. Its name names the prepared statement, its span, and the line in a trace. */
export interface Statement {
  readonly name: string;
  readonly text: string;
  /** The first verb that changes rows, or SELECT. */
  readonly operation: string;
}

const textsByName = new Map<string, string>();

/**
 * Declares a statement, once, at module level. `name` is unique in the process (`claim_prekey_bundles`, at most 63
 * bytes, as PostgreSQL cuts longer ones); throws when another text already has it.
 */
export function statement(name: string, text: string): Statement {
  if (!/^[a-z][a-z0-9_.]{0,62}$/.test(name)) throw new Error(`not a statement name: ${name}`);
  const known = textsByName.get(name);
  if (known !== undefined && known !== text) throw new Error(`two statements are named ${name}`);
  textsByName.set(name, text);
  return { name, text, operation: operationOf(text) };
}

function operationOf(text: string): string {
  const verbs = text.toUpperCase();
  const first = /^\s*(\w+)/.exec(verbs)?.[1] ?? '';
  return first === 'WITH'
    ? (/\b(INSERT INTO|UPDATE|DELETE FROM)\b/.exec(verbs)?.[1]?.split(' ')[0] ?? 'SELECT')
    : first;
}
