import { databaseCheck, newestAndSome, newestRows, somePages } from '@keytrail/diagnosis';
import { statement } from '@keytrail/storage';

interface Row {
  readonly session: string;
  /** Whether the epoch that the conversation is in has a row, of a session that was committed. */
  readonly hasEpoch: boolean;
  readonly writerBuild: string;
}

const columns = 'conversation_id, epoch, session_id, writer_build';

/** Those that were made last, and those that were given an epoch last: a conversation can be old, and its epoch of an hour ago. */
const newest = `SELECT * FROM ${newestRows('conversations', 'created_at', columns, 25)} AS made
  UNION SELECT each.* FROM ${newestRows('epochs', 'committed_at', 'conversation_id', 25)} AS moved_on
         CROSS JOIN LATERAL (SELECT ${columns} FROM conversations WHERE conversations.conversation_id = moved_on.conversation_id LIMIT 1) AS each`;

/**
 * Up to 500 conversations, the newest of each build and others at random: that each has the epoch it is in. Which sessions they have is compared
 * with session.
 */
export const conversationSessions = databaseCheck<Row>({
  code: 'CONVERSATION_SESSIONS',
  statement: statement(
    'check_conversation_sessions',
    `SELECT c.conversation_id || '/' || c.session_id AS session, c.writer_build AS "writerBuild",
            EXISTS (SELECT FROM epochs e WHERE (e.conversation_id, e.epoch, e.session_id) = (c.conversation_id, c.epoch, c.session_id)) AS "hasEpoch"
       FROM ${newestAndSome({
         columns,
         newest,
         some: `SELECT ${columns} FROM ${somePages('conversations', 64)}`,
         key: 'conversation_id',
         limit: 500,
       })} AS c`,
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
