import type { DeviceId } from '../domain/device.ts';
import {
  type EndedBecause,
  type KeyRequest,
  type KeyRequestKind,
  type KeyRequestPriority,
  type KeyRequestState,
  openStates,
} from '../domain/key-request.ts';
import type { PrismaClient } from './generated/client.ts';

/** Where a page begins: after this request, in the order of their storing. */
export interface PageStart {
  readonly requestedAt: Date;
  readonly keyRequestId: string;
}

export const firstPage: PageStart = { requestedAt: new Date(0), keyRequestId: '00000000-0000-0000-0000-000000000000' };

/** A device's own requests, oldest first. */
export async function listOwnKeyRequests(
  prisma: PrismaClient,
  { userId, deviceId }: DeviceId,
  page: { readonly after: PageStart; readonly size: number; readonly includeEnded: boolean },
): Promise<KeyRequest[]> {
  const { requestedAt, keyRequestId } = page.after;
  const rows = await prisma.keyRequest.findMany({
    where: {
      userId,
      deviceId,
      ...(!page.includeEnded && { state: { in: [...openStates] } }),
      OR: [{ requestedAt: { gt: requestedAt } }, { requestedAt, keyRequestId: { gt: keyRequestId } }],
    },
    orderBy: [{ requestedAt: 'asc' }, { keyRequestId: 'asc' }],
    take: page.size,
  });
  return rows.map((row) => ({
    ...row,
    requester: { userId: row.userId, deviceId: row.deviceId },
    kind: row.kind as KeyRequestKind,
    priority: row.priority as KeyRequestPriority,
    state: row.state as KeyRequestState,
    acceptedAttempt: row.acceptedAttempt ?? undefined,
    holderWantedAt: row.holderWantedAt ?? undefined,
    queuedAt: row.queuedAt ?? undefined,
    endedAt: row.endedAt ?? undefined,
    endedBecause: (row.endedBecause ?? undefined) as EndedBecause | undefined,
  }));
}
