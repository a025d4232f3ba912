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
import { declared } from './declared-constraints.ts';
import { envelopeCounts } from './envelope-counts.ts';
import { oldestOpenRequest } from './oldest-open-request.ts';
import { sessionRows } from './session-rows.ts';
import { storedSessions } from './stored-sessions.ts';

const writers = databaseCheck({
  code: 'OLD_BUILD_WRITES',
  statement: writersStatement(
    'check_session_writers',
    `SELECT writer_build, created_at AS written_at FROM sessions WHERE ${newestPages('sessions')}
     UNION ALL SELECT writer_build, requested_at FROM key_requests WHERE ${newestPages('key_requests')}`,
  ),
  judge: judgeWriters,
});

/** What is checked in the rows of this service; the doctor runs them by itself where the service is down. */
export const databaseChecks: readonly DatabaseCheck[] = [
  outboxCheck,
  deadLettersCheck,
  constraintsCheck(declared),
  sessionRows,
  envelopeCounts,
  storedSessions,
  writers,
  oldestOpenRequest,
];
