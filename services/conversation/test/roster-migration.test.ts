import { randomBytes, randomUUID } from 'node:crypto';
import { cpSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { HistoryPolicy, MemberRole } from '@keytrail/contracts';
import { emptyRoster, foldRoster } from '@keytrail/crypto';
import { ensurePostgres } from '@keytrail/local';
import { createServiceDatabase, migrateDatabase, openDatabase, statement } from '@keytrail/storage';
import { expect, it } from 'vitest';
import { migrationsFolder } from '../src/service.ts';
import { readRosterEntries } from '../src/store/roster-log.ts';

const conversationId = randomUUID();

/** A conversation of three, one of whom has left, as builds from before the logs of rosters wrote it. */
const before = [
  `INSERT INTO conversations (conversation_id, kind, history_policy, epoch, session_id, roster_version, writer_build,
     created_trace_id, last_write_trace_id) VALUES ('${conversationId}', 2, 2, 1, 's1', 1, 'b', '', '')`,
  `INSERT INTO session_decisions (conversation_id, session_id, outcome, writer_build, trace_id) VALUES ('${conversationId}', 's1', 'COMMITTED', 'b', '')`,
  `INSERT INTO epochs (conversation_id, epoch, session_id, roster_version, header_hash, initiator_user_id, initiator_device_id,
     envelopes_written, envelopes_expected, writer_build, trace_id)
   VALUES ('${conversationId}', 1, 's1', 1, sha256(''), 'alice', 'd', 1, 1, 'b', '')`,
  `INSERT INTO memberships (conversation_id, user_id, role, from_epoch, from_roster_version)
   VALUES ('${conversationId}', 'alice', 1, 1, 1), ('${conversationId}', 'Zoe', 2, 1, 1), ('${conversationId}', 'bob', 2, 1, 1)`,
  `UPDATE conversations SET roster_version = 2, rotation_due = 2, min_send_epoch = 2`,
  `UPDATE memberships SET to_epoch = 1, to_roster_version = 2 WHERE user_id = 'bob'`,
];

it('a conversation from before begins its log with the roster that it has, which clients fold, and each epoch has its policy', async () => {
  await using stack = new AsyncDisposableStack();
  const postgres = stack.use(await ensurePostgres());
  const name = `rosters_${randomBytes(4).toString('hex')}`;
  const url = await createServiceDatabase({ adminUrl: postgres.url, name, role: name, password: name });
  const older = mkdtempSync(join(tmpdir(), 'migrations-'));
  stack.defer(() => rmSync(older, { recursive: true }));
  cpSync(migrationsFolder, older, {
    recursive: true,
    filter: (path) => (/\/(\d{14})_\w+/.exec(path)?.[1] ?? '') < '20261124040000',
  });
  await migrateDatabase({ url, migrations: older });
  const db = openDatabase({ url, service: 'test', connections: 2, statementTimeoutMs: 10_000 });
  stack.defer(() => db.close());
  await db.transaction(async (tx) => {
    for (const [i, sql] of before.entries()) await tx.query(statement(`roster_migration_${i}`, sql), []);
  });
  await migrateDatabase({ url, migrations: migrationsFolder });

  const { entries } = await readRosterEntries(db, conversationId, { after: 0n, upTo: 9n }, 10, 1_000_000);
  const state = entries.reduce(foldRoster, emptyRoster(conversationId));
  expect(state).toMatchObject({
    version: 2n,
    isBased: true,
    historyPolicy: HistoryPolicy.SHARED,
    members: [
      { userId: 'Zoe', role: MemberRole.MEMBER },
      { userId: 'alice', role: MemberRole.ADMIN },
    ],
    permissions: { addMembers: MemberRole.ADMIN, removeMembers: MemberRole.ADMIN, changePolicy: MemberRole.ADMIN },
  });
  const [row] = await db.query<{ roster_head: Buffer; history_policy: number; begins_policy: boolean }>(
    statement(
      'roster_migration_read',
      'SELECT roster_head, e.history_policy, begins_policy FROM conversations JOIN epochs e USING (conversation_id)',
    ),
    [],
  );
  expect(row?.roster_head.equals(state.head)).toBe(true);
  expect(row).toMatchObject({ history_policy: 2, begins_policy: true });
});
