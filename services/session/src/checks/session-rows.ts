import { databaseCheck, newestRows, somePages } from '@keytrail/diagnosis';
import { statement } from '@keytrail/storage';

interface Row {
  readonly looked: number;
  /** Of rows that this system made. */
  readonly withoutEphemeral: number;
  readonly withoutIdentity: number;
  /** Of rows that came from an older system: they may lack keys, and nobody can open them. */
  readonly importedWithoutKeys: number;
  readonly example: string | null;
  readonly writerBuild: string | null;
}

const columns = `conversation_id, session_id, kind, writer_build, initiator_ephemeral_key IS NULL AS no_ephemeral, initiator_identity_key IS NULL AS no_identity`;

/** The first two questions of whoever gets a 404: is the row whole? */
export const sessionRows = databaseCheck<Row>({
  code: 'SESSION_ROWS',
  statement: statement(
    'check_session_rows',
    `WITH looked AS MATERIALIZED (
       SELECT * FROM ${newestRows('sessions', 'created_at', columns)} AS newest
       UNION SELECT ${columns} FROM ${somePages('sessions')}
     ), wrong AS (SELECT * FROM looked WHERE kind = 'NATIVE' AND (no_ephemeral OR no_identity) LIMIT 1)
     SELECT count(*)::int AS looked,
            count(*) FILTER (WHERE kind = 'NATIVE' AND no_ephemeral)::int AS "withoutEphemeral",
            count(*) FILTER (WHERE kind = 'NATIVE' AND no_identity)::int AS "withoutIdentity",
            count(*) FILTER (WHERE kind <> 'NATIVE' AND (no_ephemeral OR no_identity))::int AS "importedWithoutKeys",
            (SELECT conversation_id || '/' || session_id FROM wrong) AS example,
            (SELECT writer_build FROM wrong) AS "writerBuild"
       FROM looked`,
  ),
  judge([row]) {
    if (!row) return { status: 'unknown', summary: 'the database told nothing' };
    const { looked, withoutEphemeral, withoutIdentity, importedWithoutKeys, example, writerBuild } = row;
    const evidence = {
      looked,
      withoutEphemeral,
      withoutIdentity,
      importedWithoutKeys,
      ...(example && { example }),
      ...(writerBuild && { writerBuild }),
    };
    if (withoutEphemeral + withoutIdentity > 0)
      return {
        status: 'fail',
        summary: `${withoutEphemeral} of ${looked} session rows lack their ephemeral key, ${withoutIdentity} their identity key`,
        evidence,
        hint: 'what was sealed with these keys cannot be opened: devices without the key request it from one that has it; keytrail explain says where none is left (NO_HOLDER_EXISTS), and there a rotation helps. See CONSTRAINTS for how such a row could be written, and the writer build for by whom',
      };
    if (importedWithoutKeys > 0)
      return {
        status: 'warn',
        summary: `${importedWithoutKeys} of ${looked} session rows came from an older system without their keys`,
        evidence,
        hint: 'their messages stay closed; a rotation gives the conversation a session that can be opened',
      };
    return { status: 'ok', summary: `${looked} session rows looked at, all with their keys`, evidence };
  },
});
