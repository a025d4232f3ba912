import { isDatabaseAway } from '@keytrail/telemetry';
import pg from 'pg';
import { afterAll, beforeAll, beforeEach, expect, test, vi } from 'vitest';
import {
  type Database,
  isConnectionFailure,
  isStatementTimeout,
  isUniqueViolation,
  openDatabase,
  statement,
  type Transaction,
  TransactionAborted,
} from '../src/index.ts';
import { startTestPostgres, type TestPostgres } from './own-database.ts';

const add = statement('test_row_add', 'INSERT INTO rows (id) VALUES ($1)');
const count = statement('test_row_count', 'SELECT count(*)::int AS count FROM rows');
const raise = statement('test_row_raise', 'UPDATE rows SET n = n + 1 WHERE id = $1');
const sleep = statement('test_sleep', 'SELECT pg_sleep(60)');

let postgres: TestPostgres;
let db: Database;

beforeAll(async () => {
  postgres = await startTestPostgres();
  db = await postgres.openDatabase('CREATE TABLE rows (id int PRIMARY KEY, n int NOT NULL DEFAULT 0)', {
    connections: 4,
  });
}, 60_000);
beforeEach(() => db.pool.query('TRUNCATE rows'));
afterAll(() => postgres?.stop());

async function rows(): Promise<number | undefined> {
  return (await db.query<{ count: number }>(count, []))[0]?.count;
}

test('what a transaction did is there when it returns, and its hooks have run', async () => {
  const hooks: string[] = [];
  const answer = await db.transaction(async (tx) => {
    await tx.query(add, [1]);
    tx.afterCommit(() => hooks.push('first'));
    tx.afterCommit(() => {
      throw new Error('a hook must not undo a commit');
    });
    tx.afterCommit(() => hooks.push('second'));
    expect(hooks).toEqual([]);
    return 'answer';
  });
  expect(answer).toBe('answer');
  expect(hooks).toEqual(['first', 'second']);
  expect(await rows()).toBe(1);
});

test('a transaction that throws leaves nothing, runs no hook, and gives its connection back', async () => {
  let hooked = false;
  for (let i = 0; i < 10; i++) {
    await expect(
      db.transaction(async (tx) => {
        tx.afterCommit(() => {
          hooked = true;
        });
        await tx.query(add, [1]);
        throw new Error('changed my mind');
      }),
    ).rejects.toThrow('changed my mind');
  }
  expect(await rows()).toBe(0);
  expect(hooked).toBe(false);
  expect(db.pool.waitingCount).toBe(0);
  expect(db.pool.totalCount).toBe(db.pool.idleCount);
});

test('a statement error that the work swallowed is not taken for a commit', async () => {
  await db.query(add, [1]);
  await expect(
    db.transaction(async (tx) => {
      await tx.query(add, [2]);
      await tx.query(add, [1]).catch(() => {});
    }),
  ).rejects.toThrow(TransactionAborted);
  expect(await rows()).toBe(1);
});

test('work is not run, and nothing written, when BEGIN fails', async () => {
  const own = await postgres.openDatabase('CREATE TABLE rows (id int PRIMARY KEY)', { connections: 1 });
  own.pool.once('acquire', (client) => {
    const query = client.query.bind(client) as (...asked: unknown[]) => unknown;
    const failing = (asked: unknown, ...rest: unknown[]) => query(asked === 'BEGIN' ? 'SELECT 1 / 0' : asked, ...rest);
    vi.spyOn(client, 'query').mockImplementation(failing as typeof client.query);
  });
  const work = vi.fn(async (tx: Transaction) => {
    tx.send(add, [1]);
    await tx.query(add, [2]);
  });
  await expect(own.transaction(work)).rejects.toMatchObject({ code: '22012' });
  expect(work).not.toHaveBeenCalled();
  expect(await own.query(count, [])).toEqual([{ count: 0 }]);
});

test('what was sent is there after the commit', async () => {
  await db.transaction(async (tx) => {
    tx.send(add, [1]);
    await tx.query(add, [2]);
    tx.send(add, [3]);
  });
  expect(await rows()).toBe(3);
});

test('what is to be sent before the commit is sent when the work has returned, and not when it throws', async () => {
  const order: string[] = [];
  const work = async (tx: Transaction) => {
    tx.beforeCommit(() => {
      order.push('sent');
      tx.send(add, [2]);
      tx.afterCommit(() => order.push('committed'));
    });
    await tx.query(add, [1]);
    order.push('worked');
  };
  await db.transaction(work);
  expect(order).toEqual(['worked', 'sent', 'committed']);
  expect(await rows()).toBe(2);
  const throwing = db.transaction(async (tx) => {
    tx.beforeCommit(() => order.push('never'));
    throw new Error('changed my mind');
  });
  await expect(throwing).rejects.toThrow('changed my mind');
  expect(order).not.toContain('never');
});

test('a database that plans once does so on each of its connections', async () => {
  const { connectionString } = db.pool.options;
  const planning = openDatabase({
    url: connectionString ?? '',
    service: 'test',
    connections: 1,
    statementTimeoutMs: 5_000,
    planOnce: true,
  });
  const mode = statement('test_plan_cache_mode', "SELECT current_setting('plan_cache_mode') AS mode");
  try {
    const generic = [{ mode: 'force_generic_plan' }];
    expect(await planning.query(mode, [])).toEqual(generic);
    expect(await planning.pipelined.query(mode, [])).toEqual(generic);
    expect(await db.query(mode, [])).toEqual([{ mode: 'auto' }]);
  } finally {
    await planning.close();
  }
});

test('a sent statement that fails leaves nothing of its transaction, and its own error comes out', async () => {
  await db.query(add, [1]);
  let hooked = false;
  const failing = [
    async (tx: Transaction) => {
      await tx.query(add, [2]);
      tx.afterCommit(() => {
        hooked = true;
      });
      tx.send(add, [1]);
      tx.send(add, [3]);
    },
    async (tx: Transaction) => {
      tx.send(add, [1]);
      await tx.query(add, [2]);
    },
    async (tx: Transaction) => {
      tx.send(add, [1]);
      await tx.query(add, [2]).catch(() => {});
    },
  ];
  for (const work of failing) {
    await expect(db.transaction(work)).rejects.toSatisfy((error) => isUniqueViolation(error, 'rows_pkey'));
    expect(await rows()).toBe(1);
  }
  expect(hooked).toBe(false);
  expect(db.pool.totalCount).toBe(db.pool.idleCount);
});

test('a statement that the driver refuses to send leaves nothing of its transaction either', async () => {
  await expect(
    db.transaction(async (tx) => {
      await tx.query(add, [1]);
      tx.send(add, [{ notJson: 1n }]);
    }),
  ).rejects.toThrow(TypeError);
  expect(await rows()).toBe(0);
  await db.transaction((tx) => tx.query(add, [1]));
});

test('a statement sent after a failed one that the work swallowed is no commit', async () => {
  await db.query(add, [1]);
  await expect(
    db.transaction(async (tx) => {
      await tx.query(add, [1]).catch(() => {});
      tx.send(add, [2]);
    }),
  ).rejects.toThrow(TransactionAborted);
  expect(await rows()).toBe(1);
});

test('the error of a statement comes out with its constraint', async () => {
  await db.query(add, [1]);
  const work = db.transaction((tx) => tx.query(add, [1]));
  await expect(work).rejects.toSatisfy((error) => isUniqueViolation(error, 'rows_pkey'));
  await expect(work).rejects.not.toSatisfy((error) => isUniqueViolation(error, 'another'));
});

test('a transaction cannot be used after its end', async () => {
  let kept: { query: Database['query'] } | undefined;
  await db.transaction(async (tx) => {
    kept = tx;
  });
  await expect(kept?.query(count, [])).rejects.toThrow('after the end of its transaction');
});

test('statements of one transaction may be started together', async () => {
  await db.transaction(async (tx) => {
    await Promise.all([1, 2, 3, 4].map((id) => tx.query(add, [id])));
  });
  expect(await rows()).toBe(4);
});

test('two transactions that deadlock both succeed', async () => {
  await db.query(add, [1]);
  await db.query(add, [2]);
  let runs = 0;
  let held = 0;
  const bothHoldOne = Promise.withResolvers<void>();
  async function raiseBoth(first: number, second: number) {
    await db.transaction(async (tx) => {
      runs++;
      await tx.query(raise, [first]);
      held++;
      if (held >= 2) bothHoldOne.resolve();
      await bothHoldOne.promise;
      await tx.query(raise, [second]);
    });
  }
  await Promise.all([raiseBoth(1, 2), raiseBoth(2, 1)]);
  expect(runs).toBeGreaterThanOrEqual(3);
  expect((await db.pool.query('SELECT n FROM rows')).rows).toEqual([{ n: 2 }, { n: 2 }]);
});

test('a statement that takes too long is cancelled, and the transaction rolled back', async () => {
  const hasty = await postgres.openDatabase('CREATE TABLE rows (id int PRIMARY KEY)', { statementTimeoutMs: 1000 });
  const work = hasty.transaction(async (tx) => {
    await tx.query(add, [1]);
    await tx.query(sleep, []);
  });
  const error = await work.catch((caught: unknown) => caught);
  expect(error).toSatisfy(isStatementTimeout);
  // Whoever called is told to try again, not that something is broken.
  expect(error).toSatisfy(isDatabaseAway);
  expect(await hasty.query(count, [])).toEqual([{ count: 0 }]);
});

test('a server that only reads, as a standby that is not promoted yet, counts as away, and is asked again once it writes', async () => {
  const standby = await postgres.openDatabase('CREATE TABLE rows (id int PRIMARY KEY)');
  // What a hot standby is to its clients.
  const [{ name } = { name: '' }] = (await standby.pool.query<{ name: string }>('SELECT current_database() AS name'))
    .rows;
  const readsOnly = async (on: boolean) => {
    const admin = new pg.Client({ connectionString: postgres.server.url });
    await admin.connect();
    await admin.query(`ALTER DATABASE ${name} SET default_transaction_read_only = ${on}`);
    await admin.query('SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1', [name]);
    await admin.end();
  };
  await readsOnly(true);
  for (const write of [
    () => standby.query(add, [1]),
    () => standby.pipelined.query(add, [1]),
    () => standby.transaction((tx) => tx.query(add, [1])),
    () => standby.transaction(async (tx) => tx.send(add, [1])),
  ])
    expect(await write().catch((error: unknown) => error)).toSatisfy(isDatabaseAway);
  await readsOnly(false);
  await vi.waitFor(() => standby.pipelined.query(add, [1]), 10_000);
  expect(await standby.query(count, [])).toEqual([{ count: 1 }]);
});

test('a connection lost between two statements is told as such, ends no process, and the next transaction gets a new one', async () => {
  const lost = db.transaction(async (tx) => {
    const own = statement('test_own_pid', 'SELECT pg_backend_pid() AS pid');
    const [{ pid } = { pid: 0 }] = await tx.query<{ pid: number }>(own, []);
    await db.pool.query('SELECT pg_terminate_backend($1)', [pid]);
    await vi.waitFor(async () => {
      const alive = await db.pool.query('SELECT FROM pg_stat_activity WHERE pid = $1', [pid]);
      expect(alive.rowCount).toBe(0);
    }, 10_000);
    await tx.query(add, [1]);
  });
  await expect(lost).rejects.toSatisfy(isConnectionFailure);
  await db.transaction((tx) => tx.query(add, [1]));
  expect(await rows()).toBe(1);
});

test('a server that is not there is a connection failure', async () => {
  const nowhere = openDatabase({
    url: 'postgres://nobody@127.0.0.1:1/nothing',
    service: 'test',
    connections: 1,
    statementTimeoutMs: 1000,
  });
  await expect(nowhere.query(count, [])).rejects.toSatisfy(isConnectionFailure);
  await nowhere.close();
});
