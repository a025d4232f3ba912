import { timestampNow } from '@bufbuild/protobuf/wkt';
import type { UserErasureRequested } from '@keytrail/contracts';
import { type EventBus, publishHint, userErased } from '@keytrail/events';
import { type Logger, pseudonym } from '@keytrail/telemetry';
import type { Gateway } from '../gateway.ts';
import type { LeaseStore } from '../store/lease-store.ts';

interface ErasingParts {
  readonly gateway: Gateway;
  readonly leases: LeaseStore;
  readonly bus: EventBus;
  readonly log: Logger;
}

/**
 * Ends the user's streams, on whichever gateways, and deletes the user's entry. Nothing of an erasure is remembered here: asked again it is
 * done again, and a report that is lost is asked for again. It counts the entries that there were, so those of a second report are none.
 */
export async function eraseUser(
  { gateway, leases, bus, log }: ErasingParts,
  requested: UserErasureRequested,
): Promise<void> {
  const { erasureId, userId } = requested;
  const found = await leases.findAll([userId]);
  gateway.endErased(requested);
  await leases.forget(userId);
  const counts = [{ kind: 'attachments', erased: BigInt(found.length), kept: 0n }];
  const report = { service: 'presence', erasedAt: timestampNow(), counts };
  await publishHint(bus, userErased.presence, { erasureId, report });
  log.info({ erasureId, user: pseudonym(userId), attachments: found.length }, 'user erased');
}
