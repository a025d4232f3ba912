import type { DatabaseCheck } from '@keytrail/diagnosis';

/** What is checked in the rows of this service; the doctor runs them by itself where the service is down. */
export const databaseChecks: readonly DatabaseCheck[] = [];
