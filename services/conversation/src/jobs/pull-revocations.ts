import { timestampDate } from '@bufbuild/protobuf/wkt';
import type { IdentityKeysService } from '@keytrail/contracts';
import { type Rounds, startRounds } from '@keytrail/events';
import type { Peer } from '@keytrail/rpc';
import type { Database } from '@keytrail/storage';
import type { Logger } from '@keytrail/telemetry';
import { moveCompleteTo, noteRevokedDevices, readCompleteTo } from '../store/revoked-devices.ts';

interface PullParts {
  readonly db: Database;
  readonly identityKeys: Pick<Peer<typeof IdentityKeysService>, 'listRevokedDevices'>;
  readonly reach: Rounds;
  readonly log: Logger;
}

/** Reads on in the list of revocations of identity-keys: at most one interval and one call later than it, also when every event was lost. */
export function pullRevocations({ db, identityKeys, reach, log }: PullParts, everyMs: number): Rounds {
  return startRounds({
    what: 'the pull of revocations',
    everyMs,
    log,
    async round() {
      const after = await readCompleteTo(db);
      const { revocations, more } = await identityKeys.listRevokedDevices({ after });
      const last = revocations.at(-1);
      if (!last) return false;
      const told = revocations.flatMap(({ device, revokedAt }) =>
        device ? [{ ...device, revokedAt: revokedAt ? timestampDate(revokedAt) : new Date() }] : [],
      );
      const missed = await db.transaction(async (tx) => {
        const noted = await noteRevokedDevices(tx, told);
        await moveCompleteTo(tx, last.number);
        return noted;
      });
      if (missed > 0) {
        log.info({ missed }, 'revocations were noted that no event had told');
        reach.soon();
      }
      return more;
    },
  });
}
