import { databaseCheck, newestAndSome, newestRows, somePages } from '@keytrail/diagnosis';
import { statement } from '@keytrail/storage';

interface Row {
  readonly looked: number;
  /** Devices that lack a key of their set. */
  readonly wrong: number;
  readonly without: string | null;
  readonly writerBuild: string | null;
}

const columns = `user_id, device_number, identity_key, signing_key, certificate_signature, current_signed_prekey_id, current_last_resort_prekey_id, writer_build, revoked_at`;
const active = 'revoked_at IS NULL';

/** That devices have what others need to seal to them: of up to 2,000, the newest of each build and others at random. */
export const identityKeys = databaseCheck<Row>({
  code: 'IDENTITY_KEYS',
  statement: statement(
    'check_identity_keys',
    `WITH looked AS MATERIALIZED (
       SELECT * FROM ${newestAndSome({
         columns,
         newest: `SELECT * FROM ${newestRows('devices', 'added_at', columns)} AS newest WHERE ${active}`,
         some: `SELECT ${columns} FROM ${somePages('devices')} WHERE ${active}`,
         key: 'device_number',
         limit: 2000,
       })} AS devices
     ), judged AS MATERIALIZED (
       SELECT l.writer_build, concat_ws(', ',
              CASE WHEN l.identity_key IS NULL THEN 'identity key' END,
              CASE WHEN l.signing_key IS NULL THEN 'signing key' END,
              CASE WHEN l.certificate_signature IS NULL THEN 'certificate' END,
              CASE WHEN u.root_key IS NULL THEN 'root key' END,
              CASE WHEN s.public_key IS NULL THEN 'signed prekey' END,
              CASE WHEN p.public_key IS NULL THEN 'last-resort prekey' END) AS without
         FROM looked l
         LEFT JOIN users u ON u.user_id = l.user_id
         LEFT JOIN signed_prekeys s ON (s.device_number, s.key_id) = (l.device_number, l.current_signed_prekey_id)
         LEFT JOIN last_resort_prekeys p ON (p.device_number, p.key_id) = (l.device_number, l.current_last_resort_prekey_id)
     )
     SELECT count(*)::int AS looked, count(*) FILTER (WHERE without <> '')::int AS wrong,
            (SELECT without FROM judged WHERE without <> '' LIMIT 1) AS without,
            (SELECT writer_build FROM judged WHERE without <> '' LIMIT 1) AS "writerBuild"
       FROM judged`,
  ),
  judge([row]) {
    if (!row) return { status: 'unknown', summary: 'the database told nothing' };
    const { looked, wrong, without, writerBuild } = row;
    if (wrong === 0)
      return {
        status: 'ok',
        summary: `${looked} devices looked at, all with their full key set`,
        evidence: { looked },
      };
    return {
      status: 'fail',
      summary: `${wrong} of ${looked} devices lack keys, the first its ${without}`,
      evidence: { looked, wrong, ...(without && { without }), ...(writerBuild && { writerBuild }) },
      hint: 'nobody can seal to these devices: revoke them, and have them register again. See CONSTRAINTS for how such a row could be written',
    };
  },
});
