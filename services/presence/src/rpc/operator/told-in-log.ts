import type { Call } from '@keytrail/rpc';
import { keepTrace, pseudonym } from '@keytrail/telemetry';

const usersNamed = 20;

/** Tells in the log, before the answer, what an operator looked at: by pseudonyms, as everything here. A service asks for an operator whose call it has written down itself. */
export function tellInLog({ caller, log, method }: Call, userIds: readonly string[] = []): void {
  keepTrace('operator');
  if (caller.kind !== 'operator') return;
  log.info(
    {
      method,
      operator: pseudonym(caller.subject),
      lookedAt: userIds.slice(0, usersNamed).map((userId) => pseudonym(userId)),
      userCount: userIds.length,
    },
    'an operator looked at presence',
  );
}
