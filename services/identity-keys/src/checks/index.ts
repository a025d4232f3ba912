import { constraintsCheck, type DatabaseCheck, deadLettersCheck, outboxCheck, writersCheck } from '@keytrail/diagnosis';
import { declared } from './declared-constraints.ts';
import { identityKeys } from './identity-keys.ts';
import { prekeyPools } from './prekey-pools.ts';

/** What is checked in the rows of this service; the doctor runs them by itself where the service is down. */
export const databaseChecks: readonly DatabaseCheck[] = [
  outboxCheck,
  deadLettersCheck,
  constraintsCheck(declared),
  identityKeys,
  writersCheck('identity-keys', { devices: 'added_at' }),
  prekeyPools,
];
