import type { Cast, Stage } from './stage.ts';

/** Everybody is offline; a third device's request waits and says so; a holder attaches, and the key is delivered. */
export async function nobodyOnline(stage: Stage, { alice, bob, bobTablet, conversationId, sessionId }: Cast) {
  const bobLaptop = stage.device('bob', 'laptop');
  const link = await bobLaptop.createLinkRequest();
  await bobLaptop.registerApproved(await bob.approveDevice(link, await bobLaptop.linkCode(link)));
  await Promise.all([alice.detach(), bob.detach(), bobTablet.detach()]);
  stage.say('alice and bob are offline; bob/laptop asks for the key');

  await bobLaptop.attach();
  const request = await bobLaptop.requestKey(conversationId, sessionId);
  stage.say(`request ${request.keyRequest?.keyRequestId} recovery=${request.recovery}`);
  stage.check(
    'the request is kept, and says that no holder is online',
    request.recovery === 'PENDING_NO_HOLDER_ONLINE',
  );
  const [waiting] = await bobLaptop.keyRequests();
  stage.check('it is in the list of waiting requests', waiting?.keyRequestId === request.keyRequest?.keyRequestId);

  const delivered = stage.once(bobLaptop, 'keyDelivered');
  const from = performance.now();
  await alice.attach();
  stage.say('alice/phone attaches');
  await delivered;
  stage.say(`the key was delivered ${Math.round(performance.now() - from)} ms after alice began to attach`);
  const [message] = await bobLaptop.messages(conversationId);
  stage.check(
    'the third device decrypts the message',
    message !== undefined && 'text' in message && message.text === 'Hello Bob, can you read this?',
  );
  await Promise.all([bob.attach(), bobTablet.attach()]);
  return { bobLaptop };
}
