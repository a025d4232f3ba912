import { randomUUID } from 'node:crypto';
import { Code } from '@connectrpc/connect';
import { RefusalError } from '@keytrail/client';
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { someone, startWorld, type World } from './world.ts';

let world: World;
let sessions: pg.Client;

beforeAll(async () => {
  world = await startWorld({
    name: 'test-crash',
    serviceEnv: { conversation: { KEYTRAIL_RECONCILE_INTERVAL_MS: '200', KEYTRAIL_CANDIDATE_AGE_MS: '600000' } },
  });
  sessions = new pg.Client({ connectionString: world.constellation.databaseUrls.session });
  await sessions.connect();
});
afterAll(async () => {
  await sessions?.end();
  await world?.[Symbol.asyncDispose]();
});

const conversation = () => {
  const [replica] = world.constellation.of('conversation');
  if (!replica) throw new Error('there is no conversation service');
  return replica.process;
};

/** Restarts conversation so that it dies at this point of the next creation, or not. */
async function dieAt(point: string, more: Record<string, string> = {}): Promise<void> {
  await conversation().restart({ env: { KEYTRAIL_FAULT_POINT: point, ...more } });
}

/** What an application does with a request that was not answered: the same again, until the service is back. */
async function untilAnswered<T>(send: () => Promise<T>): Promise<T> {
  for (;;) {
    try {
      return await send();
    } catch (error) {
      if (!(error instanceof RefusalError) || error.code !== Code.Unavailable) throw error;
    }
  }
}

async function storedSessions(initiator: string): Promise<number> {
  const { rows } = await sessions.query('SELECT count(*)::int AS n FROM sessions WHERE initiator_user_id = $1', [
    initiator,
  ]);
  return rows[0].n;
}

describe('I1: a process killed between the session write and the conversation commit', () => {
  test('leaves no visible conversation, and the same request finishes it whole', async () => {
    const [a, b] = [someone('alice'), someone('bob')];
    const alice = await world.online(a, 'phone');
    const bob = await world.online(b, 'phone');
    await dieAt('conversation.after-store-session');
    const requestId = randomUUID();
    const died = conversation().exited;
    await expect(alice.createConversation({ kind: 'direct', members: [b], requestId })).rejects.toThrow();
    expect((await died).signal).toBe('SIGKILL');
    expect(await storedSessions(a)).toBe(1);

    await dieAt('');
    expect((await untilAnswered(() => bob.listConversations())).conversations).toEqual([]);
    const { conversationId, sessionId } = await untilAnswered(() =>
      alice.createConversation({ kind: 'direct', members: [b], requestId }),
    );
    expect(await storedSessions(a)).toBe(1);
    await alice.send(conversationId, 'after the crash');
    await bob.openSession(conversationId, sessionId);
    expect(await bob.messages(conversationId)).toMatchObject([{ text: 'after the crash' }]);
  });

  test('is cleaned up when nobody retries, and the pair can start again', async () => {
    const [a, b] = [someone('alice'), someone('bob')];
    const alice = await world.online(a, 'phone');
    const bob = await world.online(b, 'phone');
    await dieAt('conversation.after-store-session');
    await expect(alice.createConversation({ kind: 'direct', members: [b] })).rejects.toThrow();
    expect(await storedSessions(a)).toBe(1);

    await dieAt('', { KEYTRAIL_CANDIDATE_AGE_MS: '1' });
    // The reconciler deletes the candidate; bounded by the timeout of the test.
    while ((await storedSessions(a)) > 0) await new Promise((resolve) => setTimeout(resolve, 50));
    expect((await untilAnswered(() => bob.listConversations())).conversations).toEqual([]);

    await dieAt('', { KEYTRAIL_CANDIDATE_AGE_MS: '600000' });
    const { conversationId } = await untilAnswered(() => alice.createConversation({ kind: 'direct', members: [b] }));
    await alice.send(conversationId, 'a second start');
    expect(await bob.messages(conversationId)).toMatchObject([{ text: 'a second start' }]);
  });

  test('after the commit: the retry gets the answer that was lost', async () => {
    const [a, b] = [someone('alice'), someone('bob')];
    const alice = await world.online(a, 'phone');
    const bob = await world.online(b, 'phone');
    await dieAt('conversation.after-commit');
    const requestId = randomUUID();
    await expect(alice.createConversation({ kind: 'direct', members: [b], requestId })).rejects.toThrow();
    await dieAt('');
    const again = await untilAnswered(() => alice.createConversation({ kind: 'direct', members: [b], requestId }));
    expect((await bob.listConversations()).conversations.map((each) => each.conversationId)).toEqual([
      again.conversationId,
    ]);
    expect(await storedSessions(a)).toBe(1);
  });
});
