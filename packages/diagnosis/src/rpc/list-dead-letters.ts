import { timestampFromDate } from '@bufbuild/protobuf/wkt';
import { DiagnosticsService } from '@keytrail/contracts';
import { listDeadLetters as list } from '@keytrail/events';
import { invalidField, type Rpc, unary } from '@keytrail/rpc';
import { audited } from '../audited.ts';
import type { DiagnosticsParts } from '../parts.ts';

const defaultPageSize = 50;

/** Events that consumers of this service gave up; their payloads stay where they are. A service without a database keeps none. */
export function listDeadLetters({ database, audit }: DiagnosticsParts): Rpc {
  return unary(DiagnosticsService.method.listDeadLetters, {
    allow: ['operator'],
    async handle({ consumer, page }, call) {
      if (!database) return {};
      const { db } = database;
      const about = { action: 'list_dead_letters', note: consumer };
      return audited(call, { db, record: audit ?? (async () => {}), about }, async (recordDone) => {
        const after = readToken(page?.token ?? '');
        const size = page?.size || defaultPageSize;
        const found = await list(db, { after, consumer, most: size + 1 });
        await recordDone(db);
        const shown = found.slice(0, size);
        const last = shown.at(-1);
        return {
          deadLetters: shown.map(({ id, eventId, reason, subject, at, traceparent, payload, ...letter }) => ({
            deadLetterId: id,
            consumer: letter.consumer,
            subject,
            eventId,
            reason,
            givenUpAt: timestampFromDate(at),
            traceId: traceparent.split('-')[1] ?? '',
            payloadBytes: payload.byteLength,
          })),
          nextToken: found.length > size && last ? Buffer.from(String(last.id)).toString('base64url') : '',
        };
      });
    },
  });
}

function readToken(token: string): bigint {
  if (token === '') return 0n;
  const text = Buffer.from(token, 'base64url').toString();
  if (!/^\d{1,18}$/.test(text)) throw invalidField('page.token', 'must be next_token of the page before');
  return BigInt(text);
}
