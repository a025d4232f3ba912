import { KeyMissError, type KeytrailClient } from '@keytrail/client';
import type { Stage } from './stage.ts';

/** Another device, approved by the first one: its read is a miss that says why, and is cured by a holder that is online. */
export async function missAndCure(
  stage: Stage,
  { bob, conversationId, sessionId }: { bob: KeytrailClient; conversationId: string; sessionId: string },
) {
  const bobTablet = stage.device('bob', 'tablet');
  const link = await bobTablet.createLinkRequest();
  await bobTablet.registerApproved(await bob.approveDevice(link, await bobTablet.linkCode(link)));
  stage.say('bob/tablet registered, certified by the root key that bob/phone holds');

  const miss = await bobTablet.openSession(conversationId, sessionId, { recover: false }).then(
    () => undefined,
    (error: unknown) => error,
  );
  if (!(miss instanceof KeyMissError)) throw new Error(`the read should be a miss, and is ${miss}`);
  stage.say(`NOT_FOUND cause=${miss.cause} recovery=${miss.recovery} remedy=${miss.remedy}`);
  stage.say(`evidence ${JSON.stringify(miss.evidence)}`);
  stage.say(`trace ${miss.traceId} of this read alone   help ${miss.helpUrl}`);
  stage.check('the cause is DEVICE_ADDED_AFTER_SESSION', miss.cause === 'DEVICE_ADDED_AFTER_SESSION');
  stage.check(
    'the key is REQUESTABLE, and the remedy is REQUEST_KEY',
    miss.recovery === 'REQUESTABLE' && miss.remedy === 'REQUEST_KEY',
  );
  stage.check(
    'evidence and trace id are there',
    Object.keys(miss.evidence).length > 0 && /^[0-9a-f]{32}$/.test(miss.traceId ?? ''),
  );

  await bobTablet.attach();
  const session = await bobTablet.openSession(conversationId, sessionId);
  stage.say(`now with recovery: trace ${session.traceId}, from the miss to the cure; step 6 shows it`);
  stage.say(`${session.sealer.userId}/${session.sealer.deviceId} re-sealed the key in attempt ${session.attempt}`);
  stage.check('the new device verified signature and commitment, and has the key', session.origin === 'recovered');
  const [message] = await bobTablet.messages(conversationId);
  stage.check(
    'the new device decrypts the old message',
    message !== undefined && 'text' in message && message.text === 'Hello Bob, can you read this?',
  );
  return { bobTablet, traceId: session.traceId };
}
