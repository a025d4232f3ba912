import { timestampDate } from '@bufbuild/protobuf/wkt';
import type { ListRevokedDevicesResponse } from '@keytrail/contracts';
import { type Database, statement, type Transaction } from '@keytrail/storage';
import type { Logger } from '@keytrail/telemetry';
import { type Rounds, startRounds } from './rounds.ts';

/** A device that identity-keys says is revoked. */
export interface ToldRevocation {
  readonly userId: string;
  readonly deviceId: string;
  readonly revokedAt: Date;
}

export interface RevocationPull {
  readonly db: Database;
  readonly identityKeys: {
    listRevokedDevices(request: { after: bigint }): Promise<Pick<ListRevokedDevicesResponse, 'revocations' | 'more'>>;
  };
  readonly log: Logger;
  readonly everyMs: number;
  /** Takes the devices into the list of this service; returns how many were new. */
  note(tx: Transaction, told: readonly ToldRevocation[]): Promise<number>;
  /** Some were new. */
  noted?(): void;
}

const readPosition = statement('revocation_pull_read', 'SELECT complete_to FROM revocation_pull');
// Never back, whichever replica comes later.
const movePosition = statement(
  'revocation_pull_move',
  'UPDATE revocation_pull SET complete_to = $1 WHERE complete_to < $1',
);

/**
 * Reads on in the list of revocations of identity-keys, so that the list of a service is right also when their events were lost: at most one
 * interval and one call later. Replicas may read the same page; it is noted once. The database needs
 *
 *     CREATE TABLE revocation_pull (
 *       one boolean PRIMARY KEY DEFAULT true CHECK (one),
 *       complete_to bigint NOT NULL CHECK (complete_to >= 0)
 *     );
 *     INSERT INTO revocation_pull (complete_to) VALUES (0);
 */
export function pullRevocations({ db, identityKeys, log, everyMs, note, noted }: RevocationPull): Rounds {
  return startRounds({
    what: 'the pull of revocations',
    everyMs,
    log,
    async round() {
      const [position] = await db.query<{ complete_to: bigint }>(readPosition, []);
      if (!position) throw new Error('the position of the pull of revocations is gone');
      const { revocations, more } = await identityKeys.listRevokedDevices({ after: position.complete_to });
      const last = revocations.at(-1);
      if (!last) return false;
      const told = revocations.flatMap(({ device, revokedAt }) =>
        device ? [{ ...device, revokedAt: revokedAt ? timestampDate(revokedAt) : new Date() }] : [],
      );
      const missed = await db.transaction(async (tx) => {
        const fresh = await note(tx, told);
        await tx.query(movePosition, [last.number]);
        return fresh;
      });
      if (missed > 0) {
        log.info({ missed }, 'revocations were noted that no event had told');
        noted?.();
      }
      return more;
    },
  });
}
