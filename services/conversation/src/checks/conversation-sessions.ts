import { databaseCheck, newestRows, somePages } from '@keytrail/diagnosis';
import { statement } from '@keytrail/storage';

interface Row {
  readonly session: string;
  /** Whether the epoch that the conversation is in has a row, of a session that was committed. */
  readonly hasEpoch: boolean;
  readonly writerBuild: string;
}

const columns = 'conversation_id, epoch, session_id, writer_build, created_at';

/** Up to 500 conversations, the newest first: that each has the epoch it is in. Which sessions they have is compared with session. */
export const conversationSessions = databaseCheck<Row>({
  code: 'CONVERSATION_SESSIONS',
  statement: statement(
    'check_conversation_sessions',
    `SELECT c.conversation_id || '/' || c.session_id AS session, c.writer_build AS "writerBuild",
            EXISTS (SELECT FROM epochs e WHERE (e.conversation_id, e.epoch, e.session_id) = (c.conversation_id, c.epoch, c.session_id)) AS "hasEpoch"
       FROM (SELECT * FROM ${newestRows('conversations', 'created_at', columns, 50)} AS newest
             UNION SELECT ${columns} FROM ${somePages('conversations', 64)}) AS c
      ORDER BY c.created_at DESC LIMIT 500`,
  ),
  judge(rows) {
    const subjects = rows.map(({ session }) => session);
    const without = rows.filter(({ hasEpoch }) => !hasEpoch);
    if (without[0])
      return {
        status: 'fail',
        summary: `${without.length} of ${rows.length} conversations are in an epoch that has no row: ${without[0].session}`,
        evidence: { without: without.length, example: without[0].session, writerBuild: without[0].writerBuild },
        hint: 'they were written past the constraints (CONSTRAINTS): nobody can read them; their members make new ones',
        subjects,
      };
    return { status: 'ok', summary: `${rows.length} conversations looked at, each with its epoch`, subjects };
  },
});
