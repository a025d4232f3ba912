import type { KeytrailClient } from '@keytrail/client';
import { someone, type World } from '../e2e/world.ts';

/** Two users in a conversation, both online, and a tablet of the second that came after the session: it lacks the key. */
export interface Chat {
  readonly conversationId: string;
  readonly sessionId: string;
  readonly alice: KeytrailClient;
  readonly bob: KeytrailClient;
  readonly tablet: KeytrailClient;
  readonly aliceId: string;
  readonly bobId: string;
}

export function startChats(world: World, count: number): Promise<Chat[]> {
  return Promise.all(
    Array.from({ length: count }, async () => {
      const [aliceId, bobId] = [someone('alice'), someone('bob')];
      const [alice, bob] = await Promise.all([world.online(aliceId, 'phone'), world.online(bobId, 'phone')]);
      const { conversationId, sessionId } = await alice.createConversation({ kind: 'direct', members: [bobId] });
      const tablet = await world.further(bob, bobId, 'tablet');
      return { conversationId, sessionId, alice, bob, tablet, aliceId, bobId };
    }),
  );
}

/** Resolves when the key that the tablet asked for is in its store. */
export function keyArrives({ tablet, sessionId }: Chat): Promise<void> {
  return new Promise((resolve) => {
    tablet.on('keyDelivered', (delivered) => {
      if (delivered.sessionId === sessionId) resolve();
    });
  });
}
