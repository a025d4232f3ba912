import { type Client, createClient } from '@connectrpc/connect';
import {
  ConversationService,
  type Greeting,
  KeyRequestRole,
  PresenceService,
  SessionService,
} from '@keytrail/contracts';
import { afterAll, afterEach, beforeAll, expect, test, vi } from 'vitest';
import { someone, startWorld, type World } from './world.ts';

let world: World;
const leaving: AbortController[] = [];
beforeAll(async () => {
  world = await startWorld({
    name: 'test-greeting',
    // What is offered, or asked for, waits for whoever comes back.
    env: { KEYTRAIL_KEY_REQUEST_OFFER_MS: '600000', KEYTRAIL_ATTACH_WAITING_MS: '20000' },
  });
});
afterEach(() => {
  for (const each of leaving.splice(0)) each.abort();
});
afterAll(async () => {
  await world?.[Symbol.asyncDispose]();
});

interface Bare {
  readonly session: Client<typeof SessionService>;
  readonly conversation: Client<typeof ConversationService>;
  /** Attaches anew, past the SDK, and leaves again when it is told to. */
  attach(cursors?: {
    sessionCursor?: string;
    conversationCursor?: string;
  }): Promise<{ greeting: Greeting; leave(): void }>;
}

/** A device past its SDK, which would do at once what waits. */
function bare(userId: string, deviceId: string): Bare {
  const transports = world.transportsOf(userId, deviceId);
  const presence = createClient(PresenceService, transports.presence);
  let attachCounter = 1_000n;
  return {
    session: createClient(SessionService, transports.session),
    conversation: createClient(ConversationService, transports.conversation),
    async attach(cursors = {}) {
      attachCounter += 1n;
      const control = new AbortController();
      leaving.push(control);
      const stream = presence.attach({ attachCounter, ...cursors }, { signal: control.signal });
      const { message } = (await stream[Symbol.asyncIterator]().next()).value ?? {};
      if (message?.case !== 'greeting') throw new Error(`the first message is ${message?.case}`);
      return { greeting: message.value, leave: () => control.abort() };
    },
  };
}

/** Pulls until nothing is new: whatever was on its way at the first pull comes again in the next. */
async function cursorAfter(pull: (cursor: string) => Promise<{ nextCursor: string; more: boolean }>): Promise<string> {
  let cursor = '';
  for (let more = true; more; ) ({ nextCursor: cursor, more } = await pull(cursor));
  return cursor;
}

test('the greeting tells a device which key offers wait, and the one that asked that its request is open, until each has pulled it', async () => {
  const [a, b] = [someone('alice'), someone('bob')];
  const alice = world.device(a, 'phone');
  const laptop = world.device(b, 'laptop');
  await Promise.all([alice.register(), laptop.register()]);
  const { conversationId, sessionId } = await alice.createConversation({ kind: 'direct', members: [b] });
  const tablet = await world.further(laptop, b, 'tablet');

  const holder = bare(b, 'laptop');
  const first = await holder.attach();
  expect(first.greeting.keysWaiting).toMatchObject({ offers: 0, openRequests: 0, changed: false });
  expect(first.greeting.prekeyStatus).toBeDefined();
  expect((await tablet.requestKey(conversationId, sessionId)).state).toBe('OFFERED');
  first.leave();
  expect((await holder.attach()).greeting.keysWaiting).toMatchObject({ offers: 1, openRequests: 0, changed: true });

  const asker = bare(b, 'tablet');
  expect((await asker.attach()).greeting.keysWaiting).toMatchObject({ offers: 0, openRequests: 1, changed: true });
  await vi.waitFor(async () => {
    const sessionCursor = await cursorAfter((cursor) => asker.session.listKeyChanges({ cursor }));
    const { greeting } = await asker.attach({ sessionCursor });
    expect(greeting.keysWaiting).toMatchObject({ openRequests: 1, changed: false });
  }, 10_000);
  const sessionCursor = await cursorAfter((cursor) => asker.session.listKeyChanges({ cursor }));
  const [request] = (await asker.session.listKeyRequests({ role: KeyRequestRole.REQUESTER })).keyRequests;
  await asker.session.cancelKeyRequest({ keyRequestId: request?.keyRequestId ?? '' });
  expect((await asker.attach({ sessionCursor })).greeting.keysWaiting).toMatchObject({
    openRequests: 0,
    changed: true,
  });
});

test('the greeting tells which rotations are due, and whether a conversation changed after the cursor that was brought', async () => {
  const [a, b, c] = [someone('alice'), someone('bob'), someone('carol')];
  const [alice, bob, carol] = [world.device(a, 'phone'), world.device(b, 'phone'), world.device(c, 'phone')];
  await Promise.all([alice.register(), bob.register(), carol.register()]);
  const { conversationId } = await alice.createConversation({ kind: 'group', members: [b, c] });
  const member = bare(b, 'phone');
  expect((await member.attach()).greeting.conversationsWaiting).toMatchObject({ rotationsDue: [], changed: true });
  const pulled = () => cursorAfter((cursor) => member.conversation.listChanges({ cursor }));
  await vi.waitFor(async () => {
    const { greeting } = await member.attach({ conversationCursor: await pulled() });
    expect(greeting.conversationsWaiting).toMatchObject({ changed: false });
  }, 10_000);

  const before = await pulled();
  await alice.send(conversationId, 'hello');
  expect((await member.attach({ conversationCursor: before })).greeting.conversationsWaiting).toMatchObject({
    rotationsDue: [],
    changed: true,
  });
  await alice.removeMembers(conversationId, [c]);
  expect((await member.attach({ conversationCursor: await pulled() })).greeting.conversationsWaiting).toMatchObject({
    rotationsDue: [conversationId],
    moreRotationsDue: false,
  });
  // Whoever is removed has no part in it.
  expect((await bare(c, 'phone').attach()).greeting.conversationsWaiting).toMatchObject({ rotationsDue: [] });
});
