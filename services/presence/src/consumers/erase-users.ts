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
 * Ends the user's streams and deletes the user's entry. Nothing of an erasure is remembered here: asked again it is done again, and a report
 * that is lost is asked for again.
 */
export async function eraseUser(
  { gateway, leases, bus, log }: ErasingParts,
  { erasureId, userId }: UserErasureRequested,
): Promise<void> {
  const found = await leases.findAll([userId]);
  for (const device of found) gateway.endRevoked(device);
  await leases.forget(userId);
  const counts = [{ kind: 'attachments', erased: BigInt(found.length), kept: 0n }];
  const report = { service: 'presence', erasedAt: timestampNow(), counts };
  await publishHint(bus, userErased.presence, { erasureId, report });
  log.info({ erasureId, user: pseudonym(userId), attachments: found.length }, 'user erased');
}
