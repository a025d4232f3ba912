import { constraintsCheck, type DatabaseCheck, deadLettersCheck, outboxCheck, writersCheck } from '@keytrail/diagnosis';
import { stuckCandidates } from './candidates.ts';
import { conversationSessions } from './conversation-sessions.ts';
import { declared } from './declared-constraints.ts';

/** What is checked in the rows of this service; the doctor runs them by itself where the service is down. */
export const databaseChecks: readonly DatabaseCheck[] = [
  outboxCheck,
  deadLettersCheck,
  constraintsCheck(declared),
  conversationSessions,
  writersCheck('conversation', {
    conversations: 'created_at',
    epochs: 'committed_at',
    roster_log: 'recorded_at',
    session_decisions: 'decided_at',
    candidates: 'started_at',
    messages: 'sent_at',
  }),
  stuckCandidates,
];
