import { type FindKeyRequestsRequest, KeyRequestStateSchema, SessionOperatorService } from '@keytrail/contracts';
import { invalidField, type Rpc, unary } from '@keytrail/rpc';
import { type KeyRequestState, openStates } from '../../domain/key-request.ts';
import type { Parts } from '../../parts.ts';
import { findKeyRequests as find, type KeyRequestFilter } from '../../store/operator-key-requests.ts';
import { readToken, writeToken } from '../list-key-requests.ts';
import { audited } from './audited.ts';
import { keyRequestView } from './key-request-view.ts';

const defaultPageSize = 50;

/** Key requests of all devices. Who looked for whose is audited before anything is shown. */
export function findKeyRequests({ db }: Pick<Parts, 'db'>): Rpc {
  return unary(SessionOperatorService.method.findKeyRequests, {
    allow: ['operator'],
    async handle(request, call) {
      const filter = filterOf(request);
      const { keyRequestId, conversationId, userId, deviceId } = filter;
      const about = { action: 'find_key_requests', keyRequestId, conversationId, userId, deviceId, note: '' };
      return audited(db, call, about, async (recordDone) => {
        if (deviceId !== undefined && userId === undefined)
          throw invalidField('device_id', 'names a device together with user_id');
        const size = request.page?.size || defaultPageSize;
        const found = await find(db, filter, readToken(request.page?.token ?? ''), size + 1);
        await recordDone(db);
        const shown = found.slice(0, size);
        const last = shown.at(-1);
        return {
          keyRequests: shown.map(keyRequestView),
          nextToken: found.length > size && last ? writeToken(last.request) : '',
        };
      });
    },
  });
}

function filterOf(request: FindKeyRequestsRequest): KeyRequestFilter {
  const { conversationId, userId, deviceId, keyRequestId, olderThanMs } = request;
  const named = request.states.map((state) => KeyRequestStateSchema.value[state]?.localName as KeyRequestState);
  return {
    states: named.length > 0 || keyRequestId !== '' ? named : openStates,
    keyRequestId: keyRequestId || undefined,
    conversationId: conversationId || undefined,
    userId: userId || undefined,
    deviceId: deviceId || undefined,
    olderThanMs: Number(olderThanMs),
  };
}
