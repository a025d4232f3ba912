import { create } from '@bufbuild/protobuf';
import type { Client } from '@connectrpc/connect';
import { type IdentityKeysService, NotificationKind, NotificationSchema, type PrekeyStatus } from '@keytrail/contracts';
import { type Rounds, startRounds } from '@keytrail/events';
import type { Telemetry } from '@keytrail/telemetry';
import type { AskStanding } from '../device-standing.ts';
import type { Attachment } from '../domain/attachment.ts';
import type { Gateway } from '../gateway.ts';

type Revocations = Pick<Client<typeof IdentityKeysService>, 'listRevokedDevices'>;

/** Standings asked for at once; a round that finds identity-keys away stops after these. */
const askedAtOnce = 16;
const firstStride = 1_000n;

/**
 * Ends the streams of revoked devices that no event told of, within one interval and one call: reads on in the list of revocations, from
 * where it stood when this gateway began, since every device is asked for when it attaches. Whoever attached while that could not be asked is
 * asked for again here, until the standing is known.
 */
export function followRevocations(
  {
    gateway,
    identityKeys,
    ask,
    log,
  }: {
    readonly gateway: Gateway;
    readonly identityKeys: Revocations;
    readonly ask: AskStanding;
    readonly log: Telemetry['log'];
  },
  everyMs: number,
): Rounds {
  let after: bigint | undefined;
  return startRounds({
    what: 'the pull of revocations',
    everyMs,
    log,
    async round() {
      if (after === undefined) {
        after = await newestRevocation(identityKeys);
        gateway.followsRevocations = true;
      }
      const { revocations, more } = await identityKeys.listRevokedDevices({ after });
      for (const { number, device } of revocations) {
        if (device) gateway.attachments.of(device.userId, device.deviceId)?.end('revoked');
        after = number;
      }
      if (more) return true;
      await askAgain(gateway, ask);
      return false;
    },
  });
}

/** A number of which all newer revocations fit on one page, found in strides that double: the list can only be read forwards. */
async function newestRevocation(identityKeys: Revocations): Promise<bigint> {
  let known = 0n;
  let none: bigint | undefined;
  for (let stride = firstStride; none === undefined || none - known > firstStride; stride *= 2n) {
    const probe: bigint = none === undefined ? known + stride : (known + none) / 2n;
    const [next] = (await identityKeys.listRevokedDevices({ after: probe, pageSize: 1 })).revocations;
    if (next) known = next.number;
    else none = probe;
  }
  return known;
}

async function askAgain(gateway: Gateway, ask: AskStanding): Promise<void> {
  const unknown = gateway.attachments.all().filter(({ ended, standingKnown }) => !ended && !standingKnown);
  for (let from = 0; from < unknown.length; from += askedAtOnce) {
    const asked = await Promise.all(
      unknown.slice(from, from + askedAtOnce).map(async (attachment) => settle(attachment, await ask(attachment))),
    );
    if (asked.includes('unknown')) return;
  }
}

function settle(attachment: Attachment, standing: Awaited<ReturnType<AskStanding>>): string {
  if (standing.kind === 'refused') attachment.end(standing.why);
  if (standing.kind === 'active') {
    attachment.standingKnown = true;
    if (isDue(standing.prekeyStatus))
      attachment.deliver(create(NotificationSchema, { kind: NotificationKind.PREKEYS_LOW }));
  }
  return standing.kind;
}

/** What the greeting could not tell. */
function isDue(status: PrekeyStatus | undefined): boolean {
  return status !== undefined && (status.refillDue || status.signedPrekeyDue || status.lastResortPrekeyDue);
}
