import { timestampDate } from '@bufbuild/protobuf/wkt';
import { type Rounds, startRounds } from '@keytrail/events';
import type { Database } from '@keytrail/storage';
import type { Logger } from '@keytrail/telemetry';
import type { Peers } from '../peers.ts';
import { moveCompleteTo, noteRevokedDevices, readCompleteTo } from '../store/revoked-devices.ts';

interface Parts {
  readonly db: Database;
  readonly peers: Pick<Peers, 'identityKeys'>;
  readonly log: Logger;
}

/**
 * Reads on in the list of revocations of identity-keys, so that the list here is right also when their events were lost: at most one
 * interval and one call later. Replicas may read the same page; it is noted once.
 */
export function pullRevocations({ db, peers, log }: Parts, everyMs: number): Rounds {
  return startRounds({
    what: 'the pull of revocations',
    everyMs,
    log,
    async round() {
      const after = await readCompleteTo(db);
      const { revocations, more } = await peers.identityKeys.listRevokedDevices({ after });
      const last = revocations.at(-1);
      if (!last) return false;
      const missed = await db.transaction(async (tx) => {
        const told = revocations.flatMap(({ device, revokedAt }) =>
          device ? [{ ...device, revokedAt: revokedAt ? timestampDate(revokedAt) : new Date() }] : [],
        );
        const noted = await noteRevokedDevices(tx, told);
        await moveCompleteTo(tx, last.number);
        return noted;
      });
      if (missed > 0) log.info({ missed }, 'revocations were noted that no event had told');
      return more;
    },
  });
}
