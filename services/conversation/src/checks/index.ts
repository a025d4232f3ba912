import {
  constraintsCheck,
  type DatabaseCheck,
  databaseCheck,
  deadLettersCheck,
  judgeWriters,
  newestPages,
  outboxCheck,
  writersStatement,
} from '@keytrail/diagnosis';
import { stuckCandidates } from './candidates.ts';
import { conversationSessions } from './conversation-sessions.ts';
import { declared } from './declared-constraints.ts';

const writers = databaseCheck({
  code: 'OLD_BUILD_WRITES',
  statement: writersStatement(
    'check_conversation_writers',
    `SELECT writer_build, committed_at AS written_at FROM epochs WHERE ${newestPages('epochs')}
     UNION ALL SELECT writer_build, sent_at FROM messages WHERE ${newestPages('messages')}`,
  ),
  judge: judgeWriters,
});

/** What is checked in the rows of this service; the doctor runs them by itself where the service is down. */
export const databaseChecks: readonly DatabaseCheck[] = [
  outboxCheck,
  deadLettersCheck,
  constraintsCheck(declared),
  conversationSessions,
  writers,
  stuckCandidates,
];
