import { constraintsCheck, type DatabaseCheck, deadLettersCheck, outboxCheck, writersCheck } from '@keytrail/diagnosis';
import { declared } from './declared-constraints.ts';
import { envelopeCounts } from './envelope-counts.ts';
import { oldestOpenRequest } from './oldest-open-request.ts';
import { sessionRows } from './session-rows.ts';
import { storedSessions } from './stored-sessions.ts';

/** What is checked in the rows of this service; the doctor runs them by itself where the service is down. */
export const databaseChecks: readonly DatabaseCheck[] = [
  outboxCheck,
  deadLettersCheck,
  constraintsCheck(declared),
  sessionRows,
  envelopeCounts,
  storedSessions,
  writersCheck('session', { sessions: 'created_at', key_requests: 'requested_at', envelopes: 'written_at' }),
  oldestOpenRequest,
];
