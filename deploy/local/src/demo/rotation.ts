import { type KeytrailClient, RotationLost } from '@keytrail/client';
import type { Cast, Stage } from './stage.ts';

/** The session is rotated; all devices decrypt the next message; a second, concurrent rotation of the same epoch loses cleanly. */
export async function rotation(stage: Stage, cast: Cast & { bobLaptop: KeytrailClient }) {
  const { alice, bob, conversationId } = cast;
  const outcomes = await Promise.allSettled([alice.rotate(conversationId), bob.rotate(conversationId)]);
  const won = outcomes.filter((outcome) => outcome.status === 'fulfilled');
  const lost = outcomes.filter((outcome) => outcome.status === 'rejected');
  stage.check('of two concurrent rotations of one epoch exactly one wins', won.length === 1 && lost.length === 1);
  const [winner] = won;
  const loser: unknown = lost[0]?.reason;
  stage.check(
    'the other is told who won',
    loser instanceof RotationLost && winner !== undefined && loser.winner.sessionId === winner.value.sessionId,
  );
  stage.say(
    `epoch ${winner?.value.epoch}, session ${winner?.value.sessionId}, ${winner?.value.envelopesWritten} envelopes`,
  );

  const { sequence } = await alice.send(conversationId, 'And this, under the new key?');
  const devices = [cast.bob, cast.bobTablet, cast.bobLaptop];
  const read = await Promise.all(
    devices.map(async (device) => (await device.messages(conversationId, { after: sequence - 1n })).at(-1)),
  );
  stage.check(
    'all devices decrypt the next message',
    read.every(
      (message) => message !== undefined && 'text' in message && message.text === 'And this, under the new key?',
    ),
  );
}
