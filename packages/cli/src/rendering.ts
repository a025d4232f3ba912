import { type Timestamp, timestampDate } from '@bufbuild/protobuf/wkt';
import {
  type DeviceRef,
  KeyRequestKindSchema,
  KeyRequestPrioritySchema,
  type KeyRequestState,
  KeyRequestStateSchema,
  type KeyRequestView,
} from '@keytrail/contracts';

/** One line each, under a heading. */
export function requestsTable(views: readonly KeyRequestView[], now: Date): string {
  const heading = ['KEY REQUEST', 'STATE', 'KIND', 'AGE', 'ATTEMPT', 'HOLDERS', 'REQUESTER', 'CONVERSATION', 'BECAUSE'];
  const rows = views.flatMap(({ keyRequest: request }) =>
    request
      ? [
          [
            request.keyRequestId,
            stateName(request.state),
            KeyRequestKindSchema.value[request.kind]?.localName ?? '',
            age(request.requestedAt, now),
            String(request.attempt),
            String(request.holders),
            device(request.requester),
            request.conversationId,
            request.endedBecause || '-',
          ],
        ]
      : [],
  );
  return table([heading, ...rows]);
}

/** All that is known of one request. */
export function requestDetails({ keyRequest: request, ...view }: KeyRequestView): string {
  if (!request) return '';
  const lines: [string, string][] = [
    ['key request', request.keyRequestId],
    ['state', stateName(request.state)],
    ['ended because', request.endedBecause || '-'],
    ['kind', KeyRequestKindSchema.value[request.kind]?.localName ?? ''],
    ['priority', KeyRequestPrioritySchema.value[request.priority]?.localName ?? ''],
    ['requester', device(request.requester)],
    ['conversation', request.conversationId],
    ['session', `${request.sessionId} (epoch ${request.epoch})`],
    ['requested at', time(request.requestedAt)],
    ['next look at', time(request.nextAttemptAt)],
    ['expires at', time(request.expiresAt)],
    ['ended at', time(view.endedAt)],
    ['attempt', `${request.attempt}${view.acceptedAttempt > 0 ? `, accepted ${view.acceptedAttempt}` : ''}`],
    ['holders', String(request.holders)],
    ['trace', view.traceId || '-'],
    ['stored by', view.writerBuild],
  ];
  const offers = view.offers.map((offer) => [
    device(offer.holder),
    String(offer.attempt),
    time(offer.offeredAt),
    time(offer.lapsesAt),
    offer.declinedBecause || '-',
  ]);
  const offered =
    offers.length === 0
      ? 'no offers'
      : table([['OFFERED TO', 'ATTEMPT', 'OFFERED AT', 'LAPSES AT', 'DECLINED BECAUSE'], ...offers]);
  return `${table(lines)}\n\n${offered}`;
}

/** Columns as wide as they must be. */
export function table(rows: readonly (readonly string[])[]): string {
  const widths = (rows[0] ?? []).map((_, column) => Math.max(...rows.map((row) => row[column]?.length ?? 0)));
  const line = (row: readonly string[]) => row.map((cell, column) => cell.padEnd(widths[column] ?? 0)).join('  ');
  return rows.map((row) => line(row).trimEnd()).join('\n');
}

const stateName = (state: KeyRequestState) => KeyRequestStateSchema.value[state]?.localName ?? String(state);
export const device = (ref: DeviceRef | undefined) => (ref ? `${ref.userId}/${ref.deviceId}` : '-');
export const time = (at: Timestamp | undefined) => (at ? timestampDate(at).toISOString() : '-');

export function age(since: Timestamp | undefined, now: Date): string {
  if (!since) return '-';
  const seconds = Math.max(0, Math.floor((now.getTime() - timestampDate(since).getTime()) / 1000));
  if (seconds < 120) return `${seconds}s`;
  if (seconds < 7_200) return `${Math.floor(seconds / 60)}m`;
  return seconds < 172_800 ? `${Math.floor(seconds / 3_600)}h` : `${Math.floor(seconds / 86_400)}d`;
}
