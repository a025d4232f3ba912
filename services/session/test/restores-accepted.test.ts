import { randomUUID } from 'node:crypto';
import { createClient } from '@connectrpc/connect';
import { DiagnosticsService } from '@keytrail/contracts';
import { createGrpcTransport } from '@keytrail/rpc';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { startWorld, type World } from './world.ts';

let world: World;
beforeAll(async () => {
  world = await startWorld({}, { sweep: false });
}, 60_000);
afterAll(() => world?.stop());

test('whoever accepts restores stands in the audit log, also when there was none to accept', async () => {
  const authorization = `Bearer ${await world.operatorToken()}`;
  const transport = createGrpcTransport({ target: world.target, authorization: () => authorization });
  const operator = createClient(DiagnosticsService, transport);
  await world.sql.query(
    `INSERT INTO database_restores (incarnation, ended_incarnation, because, found_place, noticed_at, handled_at, position_found, position_expected)
     VALUES ($1, gen_random_uuid(), 'a drill', 'elsewhere', now(), now(), 1, 2)`,
    [randomUUID()],
  );
  try {
    expect(await operator.acceptRestores({ auditNote: 'from the backup of 03:00' })).toMatchObject({ accepted: 1 });
    expect(await operator.acceptRestores({ auditNote: 'again' })).toMatchObject({ accepted: 0 });
  } finally {
    transport.close();
  }
  const { rows } = await world.sql.query(
    "SELECT operator, note, outcome FROM audit_log WHERE action = 'accept_restores' ORDER BY number",
  );
  expect(rows).toEqual([
    { operator: 'ops', note: 'from the backup of 03:00', outcome: 'done' },
    { operator: 'ops', note: 'again', outcome: 'done' },
  ]);
});
