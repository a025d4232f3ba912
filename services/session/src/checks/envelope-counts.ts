import { databaseCheck, newestAndSome, newestRows, somePages } from '@keytrail/diagnosis';
import { statement } from '@keytrail/storage';

interface Row {
  readonly looked: number;
  readonly envelopesExpected: number;
  readonly envelopesPresent: number;
  /** Sessions of which something is missing, or that have too much. */
  readonly wrong: number;
  readonly example: string | null;
}

const columns = 'conversation_id, session_id, kind, envelopes_expected, withholdings_expected, writer_build';
const native = "kind = 'NATIVE'";

/** What is there of what a session was stored with; of up to 500 sessions, the newest of each build and others at random. */
export const envelopeCounts = databaseCheck<Row>({
  code: 'ENVELOPE_COUNTS',
  statement: statement(
    'check_envelope_counts',
    `WITH looked AS MATERIALIZED (
       SELECT * FROM ${newestAndSome({
         columns,
         newest: `SELECT * FROM ${newestRows('sessions', 'created_at', columns, 50)} AS newest WHERE ${native}`,
         some: `SELECT ${columns} FROM ${somePages('sessions', 64)} WHERE ${native}`,
         key: 'conversation_id, session_id',
         limit: 500,
       })} AS sessions
     ), counted AS MATERIALIZED (
       SELECT conversation_id, session_id, writer_build, envelopes_expected AS expected, withholdings_expected AS withheld,
              (SELECT count(*) FROM envelopes e WHERE (e.conversation_id, e.session_id, e.attempt) = (l.conversation_id, l.session_id, 0))
                + coalesce(p.envelopes, 0) AS present,
              (SELECT count(*) FROM withholdings w WHERE (w.conversation_id, w.session_id) = (l.conversation_id, l.session_id))
                + coalesce(p.withholdings, 0) AS withholding
         FROM looked l LEFT JOIN erased_parts p USING (conversation_id, session_id)
     ), wrong AS (SELECT * FROM counted WHERE present <> expected OR withholding <> withheld)
     SELECT count(*)::int AS looked, coalesce(sum(expected), 0)::int AS "envelopesExpected", coalesce(sum(present), 0)::int AS "envelopesPresent",
            (SELECT count(*)::int FROM wrong) AS wrong,
            (SELECT format('%s/%s has %s of %s envelopes, by %s', conversation_id, session_id, present, expected, writer_build)
               FROM wrong LIMIT 1) AS example
       FROM counted`,
  ),
  judge([row]) {
    if (!row) return { status: 'unknown', summary: 'the database told nothing' };
    const { looked, envelopesExpected, envelopesPresent, wrong, example } = row;
    const evidence = { looked, envelopesExpected, envelopesPresent, wrong, ...(example && { example }) };
    if (wrong > 0)
      return {
        status: 'fail',
        summary: `${wrong} of ${looked} sessions do not have what they were stored with: ${example}`,
        evidence,
        hint: 'devices without an envelope ask for the key and get it from holders; see CONSTRAINTS for how envelopes could go',
      };
    return {
      status: 'ok',
      summary: `${looked} sessions looked at: ${envelopesPresent} of ${envelopesExpected} envelopes`,
      evidence,
    };
  },
});
