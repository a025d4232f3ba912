import { databaseCheck, somePages } from '@keytrail/diagnosis';
import { statement } from '@keytrail/storage';

interface Row {
  readonly looked: number;
  readonly emptyOneTime: number;
  readonly emptyKem: number;
  /** With fewer than 20 of a kind, and not empty. */
  readonly low: number;
}

/** As many as KEYTRAIL_LOW_PREKEYS_BELOW is by default. */
const lowBelow = 20;

/** That devices have one-time prekeys left: of up to 1,000 devices, at most 20 entries of each pool are counted. */
export const prekeyPools = databaseCheck<Row>({
  code: 'PREKEY_POOLS',
  statement: statement(
    'check_prekey_pools',
    `WITH looked AS (SELECT device_number FROM ${somePages('devices', 64)} WHERE revoked_at IS NULL LIMIT 1000),
       counted AS MATERIALIZED (
         SELECT (SELECT count(*) FROM (SELECT FROM unclaimed_one_time_prekeys p WHERE p.device_number = l.device_number LIMIT ${lowBelow}) AS few) AS one_time,
                (SELECT count(*) FROM (SELECT FROM unclaimed_one_time_kem_prekeys p WHERE p.device_number = l.device_number LIMIT ${lowBelow}) AS few) AS kem
           FROM looked l)
     SELECT count(*)::int AS looked, count(*) FILTER (WHERE one_time = 0)::int AS "emptyOneTime", count(*) FILTER (WHERE kem = 0)::int AS "emptyKem",
            count(*) FILTER (WHERE least(one_time, kem) BETWEEN 1 AND ${lowBelow - 1})::int AS low
       FROM counted`,
  ),
  judge([row]) {
    if (!row) return { status: 'unknown', summary: 'the database told nothing' };
    const { looked, emptyOneTime, emptyKem, low } = row;
    const empty = Math.max(emptyOneTime, emptyKem);
    const evidence = { looked, emptyOneTime, emptyKem, low };
    const hint =
      'sessions to these devices begin with the signed and the last-resort prekey alone. They refill when they attach; if many are empty at once, somebody drains them: see prekeys_drained and the limits on claims';
    if (looked >= 10 && empty * 2 > looked)
      return { status: 'fail', summary: `${empty} of ${looked} devices have an empty pool of prekeys`, evidence, hint };
    if (empty > 0)
      return { status: 'warn', summary: `${empty} of ${looked} devices have an empty pool of prekeys`, evidence, hint };
    if (looked >= 10 && low * 2 > looked)
      return { status: 'warn', summary: `${low} of ${looked} devices have few prekeys left`, evidence, hint };
    return { status: 'ok', summary: `${looked} devices looked at, none with an empty pool, ${low} low`, evidence };
  },
});
