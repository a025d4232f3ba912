import { timestampDate } from '@bufbuild/protobuf/wkt';
import { consumers, type ErasedBatch, type Erasing, type EventBus, startErasing, userErased } from '@keytrail/events';
import type { Database, Transaction } from '@keytrail/storage';
import type { Logger } from '@keytrail/telemetry';
import type { SessionConfig } from '../config.ts';
import { advance } from '../domain/key-request.ts';
import { announceEnd } from '../key-request-events.ts';
import {
  countRevokedDevices,
  deleteOffersTo,
  deleteRequestIdsOf,
  deleteRequestsOf,
  forgetRevokedDevices,
  lockOpenRequestsOf,
  walkSessions,
} from '../store/erasures.ts';
import { saveKeyRequest } from '../store/key-requests.ts';
import { noteRevokedDevices } from '../store/revoked-devices.ts';

/**
 * Erases what was written for a user: key requests, offers, envelopes and withholdings. What the user wrote for others stays (sessions,
 * envelopes): without it those others could not decrypt.
 */
export function eraseUsers(
  { db, log, config }: { db: Database; log: Logger; config: SessionConfig },
  bus: EventBus,
): Erasing {
  const most = config.erasureBatch;
  return startErasing({
    bus,
    db,
    log,
    service: 'session',
    consumer: consumers.sessionErasure,
    reply: userErased.session,
    everyMs: config.erasureRoundMs,
    rememberMs: config.erasedUserRetentionMs,
    noted: async (tx, { userId, deviceIds, requestedAt }) => {
      const revokedAt = requestedAt ? timestampDate(requestedAt) : new Date();
      await noteRevokedDevices(
        tx,
        deviceIds.map((deviceId) => ({ userId, deviceId, revokedAt })),
      );
    },
    forgotten: forgetRevokedDevices,
    parts: [
      (tx, { userId }) => endRequests(tx, userId, most),
      (tx, { userId }) => counted('offers', most, deleteOffersTo(tx, userId, most)),
      async (tx, erasure) => {
        const walked = await walkSessions(tx, erasure, most);
        return {
          counts: {
            envelopes: { erased: walked.envelopes, kept: walked.envelopes_kept },
            withholdings: { erased: walked.withholdings },
            sessions: { kept: walked.sessions_kept },
          },
          more: walked.sessions === most,
        };
      },
      (tx, { userId }) => counted('key_requests', most, deleteRequestsOf(tx, userId, most)),
      (tx, { userId }) => counted('request_ids', most, deleteRequestIdsOf(tx, userId, most)),
    ],
    atLast: async (tx, { userId }) => ({ revoked_devices: { kept: await countRevokedDevices(tx, userId) } }),
  });
}

/** Ended before they are deleted: whoever is about to fulfil one is told so, and so is its requester. */
async function endRequests(tx: Transaction, userId: string, most: number): Promise<ErasedBatch> {
  const open = await lockOpenRequestsOf(tx, userId, most);
  for (const request of open) {
    const ended = advance(request, { kind: 'requester_erased' }, new Date());
    await saveKeyRequest(tx, ended, request.version);
    await announceEnd(tx, ended);
  }
  return { counts: {}, more: open.length === most };
}

async function counted(kind: string, most: number, erasing: Promise<number>): Promise<ErasedBatch> {
  const erased = await erasing;
  return { counts: { [kind]: { erased } }, more: erased >= most };
}
