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
  writersCheck('conversation', { epochs: 'committed_at', messages: 'sent_at' }),
  stuckCandidates,
];
