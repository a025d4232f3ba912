import { databaseCheck } from '@keytrail/diagnosis';
import { statement } from '@keytrail/storage';

interface Row {
  readonly missing: string;
}

/** Of the sessions that conversation names, those that are not stored here. Reads one index entry for each. */
export const storedSessions = databaseCheck<Row>({
  code: 'CONVERSATION_SESSIONS',
  statement: statement(
    'check_stored_sessions',
    `SELECT named.conversation_id || '/' || named.session_id AS missing
       FROM unnest($1::uuid[], $2::text[]) AS named (conversation_id, session_id)
      WHERE NOT EXISTS (SELECT FROM sessions s WHERE (s.conversation_id, s.session_id) = (named.conversation_id, named.session_id))`,
  ),
  values: (subjects) => [
    subjects.map((subject) => subject.slice(0, subject.indexOf('/'))),
    subjects.map((subject) => subject.slice(subject.indexOf('/') + 1)),
  ],
  judge(rows) {
    if (rows.length === 0) return { status: 'ok', summary: 'the sessions that conversation named are stored' };
    return {
      status: 'fail',
      summary: `${rows.length} conversations have a session that is not stored: ${rows[0]?.missing}`,
      evidence: { missing: rows.length, example: rows[0]?.missing ?? '' },
      hint: 'nobody can read these conversations from that epoch on: have each rotated; see DATABASE_RESTORED for how the session could be lost',
      subjects: rows.map(({ missing }) => missing),
    };
  },
});
