import { create } from '@bufbuild/protobuf';
import { NotificationKind, NotificationSchema, type PrekeyStatus } from '@keytrail/contracts';
import { type Rounds, startRounds } from '@keytrail/events';
import type { Telemetry } from '@keytrail/telemetry';
import type { AskStanding } from '../device-standing.ts';
import type { Attachment } from '../domain/attachment.ts';
import type { Gateway } from '../gateway.ts';

/** Standings asked for at once; a round that finds identity-keys away stops after these. */
const askedAtOnce = 16;

/**
 * Asks again for those who attached while identity-keys could not be asked, or not all at once, until their standing is known. Waits until
 * revocations are followed: an answer from before would not be the last word.
 */
export function askAgain(
  {
    gateway,
    ask,
    log,
  }: {
    readonly gateway: Gateway;
    readonly ask: AskStanding;
    readonly log: Telemetry['log'];
  },
  everyMs: number,
): Rounds {
  return startRounds({
    what: 'the questions for the standing of attached devices',
    everyMs,
    log,
    async round(proceed) {
      if (!gateway.followsRevocations) return false;
      const unknown = gateway.attachments.all().filter(({ ended, standing }) => !ended && standing === 'unknown');
      for (let from = 0; from < unknown.length && proceed(); from += askedAtOnce) {
        const asked = await Promise.all(
          unknown.slice(from, from + askedAtOnce).map(async (attachment) => settle(attachment, await ask(attachment))),
        );
        if (asked.every((kind) => kind === 'unknown')) break;
      }
      return false;
    },
  });
}

function settle(attachment: Attachment, standing: Awaited<ReturnType<AskStanding>>): string {
  if (standing.kind === 'refused') attachment.end(standing.why);
  if (standing.kind === 'active') {
    attachment.standing = 'known';
    if (isDue(standing.prekeyStatus))
      attachment.deliver(create(NotificationSchema, { kind: NotificationKind.PREKEYS_LOW }));
  }
  return standing.kind;
}

/** What the greeting could not tell. */
function isDue(status: PrekeyStatus | undefined): boolean {
  return status !== undefined && (status.refillDue || status.signedPrekeyDue || status.lastResortPrekeyDue);
}
