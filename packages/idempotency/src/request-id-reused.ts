import type { ConnectError } from '@connectrpc/connect';
import { refuse } from '@keytrail/rpc';

export function requestIdReused(requestId: string): ConnectError {
  return refuse('REQUEST_ID_REUSED', 'the request id was used before with other content', {
    metadata: { request_id: requestId },
  });
}
