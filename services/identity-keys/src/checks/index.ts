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
import { identityKeys } from './identity-keys.ts';
import { prekeyPools } from './prekey-pools.ts';

const writers = databaseCheck({
  code: 'OLD_BUILD_WRITES',
  statement: writersStatement(
    'check_identity_keys_writers',
    `SELECT writer_build, added_at AS written_at FROM devices WHERE ${newestPages('devices')}`,
  ),
  judge: judgeWriters,
});

/** What is checked in the rows of this service; the doctor runs them by itself where the service is down. */
export const databaseChecks: readonly DatabaseCheck[] = [
  outboxCheck,
  deadLettersCheck,
  constraintsCheck(declared),
  identityKeys,
  writers,
  prekeyPools,
];
