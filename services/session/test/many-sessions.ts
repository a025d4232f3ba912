import { randomUUID } from 'node:crypto';
import { KeyRequestKind, type KeyRequestPriority, KeyRequestRole } from '@keytrail/contracts';
import { createPerson, type MadeSession, makeSession, type Person, reseal, type TestDevice } from './people.ts';
import type { World } from './world.ts';

/** A person whose first device made sessions for itself in that many conversations, and whose second one came later. */
export interface LinkedPerson {
  readonly person: Person;
  readonly holder: TestDevice;
  readonly late: TestDevice;
  readonly made: readonly MadeSession[];
}

export async function personWithSessions(
  world: World,
  count: number,
  others: readonly Person[] = [],
): Promise<LinkedPerson> {
  const person = createPerson('alice');
  const holder = person.addDevice();
  const covered = [holder, ...others.flatMap(({ devices }) => devices)];
  const made = Array.from({ length: count }, () => makeSession({ initiator: holder, covered }));
  const left = made.values();
  const storing = async () => {
    for (const each of left) await world.store(each);
  };
  await Promise.all([storing(), storing(), storing(), storing()]);
  for (const each of made) world.peers.commit(each, [person, ...others]);
  return { person, holder, late: person.addDevice(), made };
}

export function wantedOf({ session }: MadeSession, priority?: KeyRequestPriority) {
  const { conversationId, sessionId } = session;
  return { conversationId, sessionId, kind: KeyRequestKind.MISSING, ...(priority && { priority }) };
}

export function requestKeysOf(made: readonly MadeSession[], priority?: KeyRequestPriority) {
  return { requestId: randomUUID(), keys: made.map((each) => wantedOf(each, priority)) };
}

/** A holder at work: it takes what it is offered, a page at a time, until nothing is left. Calls `seen` with the sessions of each page. */
export async function workThrough(
  world: World,
  holder: TestDevice,
  sessions: ReadonlyMap<string, { readonly made: MadeSession; readonly to: TestDevice }>,
  page: number,
  seen: (sessionIds: readonly string[]) => Promise<void> | void,
): Promise<boolean> {
  const client = world.as(holder);
  const { keyRequests } = await client.listKeyRequests({ role: KeyRequestRole.HOLDER, page: { size: page } });
  if (keyRequests.length === 0) return false;
  const fulfilments = keyRequests.map(({ keyRequestId, attempt, sessionId }) => {
    const wanted = sessions.get(sessionId);
    if (!wanted) throw new Error('an offer of a session that is not of this test');
    return { keyRequestId, attempt, envelope: reseal(wanted.made, holder, wanted.to, attempt) };
  });
  const { results } = await client.fulfillKeyRequests({ requestId: randomUUID(), fulfilments });
  const refused = results.find((result) => result.refused);
  if (refused) throw new Error(`refused: ${refused.refused?.reason}`);
  await seen(keyRequests.map(({ sessionId }) => sessionId));
  return true;
}
