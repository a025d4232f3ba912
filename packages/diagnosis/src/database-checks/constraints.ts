import { statement } from '@keytrail/storage';
import { type DatabaseCheck, databaseCheck } from '../check.ts';

/** What the migrations of a service have put into its database to hold its invariants. */
export interface DeclaredConstraints {
  /** By table: checks, foreign keys, unique and exclusion constraints. */
  readonly constraints: Readonly<Record<string, readonly string[]>>;
  /** By table: unique indexes that are no constraint. */
  readonly uniqueIndexes: Readonly<Record<string, readonly string[]>>;
  /** By table. */
  readonly triggers: Readonly<Record<string, readonly string[]>>;
  /** By table: columns that are NOT NULL. */
  readonly notNull: Readonly<Record<string, readonly string[]>>;
}

interface Row {
  readonly kind: keyof DeclaredConstraints;
  readonly table: string;
  readonly name: string;
  /** Validated, or enabled. */
  readonly holds: boolean;
}

const read = statement(
  'check_constraints',
  `SELECT 'constraints' AS kind, t.relname::text AS table, c.conname::text AS name, c.convalidated AS holds
     FROM pg_constraint c JOIN pg_class t ON t.oid = c.conrelid
    WHERE t.relnamespace = current_schema()::regnamespace AND c.contype IN ('c', 'f', 'p', 'u', 'x')
   UNION ALL
   SELECT 'uniqueIndexes', t.relname, i.relname, x.indisvalid
     FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_class t ON t.oid = x.indrelid
    WHERE x.indisunique AND t.relkind = 'r' AND t.relnamespace = current_schema()::regnamespace
   UNION ALL
   SELECT 'triggers', t.relname, g.tgname, g.tgenabled IN ('O', 'A')
     FROM pg_trigger g JOIN pg_class t ON t.oid = g.tgrelid
    WHERE NOT g.tgisinternal AND t.relnamespace = current_schema()::regnamespace
   UNION ALL
   SELECT 'notNull', t.relname, a.attname, a.attnotnull
     FROM pg_attribute a JOIN pg_class t ON t.oid = a.attrelid
    WHERE a.attnum > 0 AND NOT a.attisdropped AND t.relkind = 'r' AND t.relnamespace = current_schema()::regnamespace`,
);

/** That the declared constraints are there, validated and enabled. Reads the catalogue of PostgreSQL alone. */
export function constraintsCheck(declared: DeclaredConstraints): DatabaseCheck {
  const kinds = Object.keys(declared) as (keyof DeclaredConstraints)[];
  const wanted = kinds.flatMap((kind) =>
    Object.entries(declared[kind]).flatMap(([table, names]) => names.map((name) => ({ kind, table, name }))),
  );
  return databaseCheck<Row>({
    code: 'CONSTRAINTS',
    statement: read,
    judge(rows) {
      const found = new Map(rows.map(({ kind, table, name, holds }) => [`${kind} ${table}.${name}`, holds]));
      const missing = wanted.flatMap(({ kind, table, name }) => {
        const holds = found.get(`${kind} ${table}.${name}`);
        if (holds) return [];
        const place = `${table}.${name}`;
        if (kind === 'notNull') return [`${place} may be NULL`];
        return [
          holds === undefined
            ? `${place} is missing`
            : `${place} is not ${kind === 'triggers' ? 'enabled' : 'validated'}`,
        ];
      });
      if (missing.length === 0)
        return { status: 'ok', summary: `${wanted.length} constraints and triggers are there and hold` };
      return {
        status: 'fail',
        summary: `${missing.length} of ${wanted.length} constraints and triggers do not hold: ${missing.slice(0, 3).join(', ')}`,
        evidence: Object.fromEntries(missing.slice(0, 10).map((text, place) => [`missing${place + 1}`, text])),
        hint: 'somebody altered the database, or a migration is missing (MIGRATIONS). Look at the rows first (SESSION_ROWS, IDENTITY_KEYS, ENVELOPE_COUNTS), then add it again as its migration says',
      };
    },
  });
}
