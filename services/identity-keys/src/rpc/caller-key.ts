import type { Call } from '@keytrail/rpc';

/** The caller as request ids and claim ids are scoped by it. A slash is in neither kind of id, so two callers never meet. */
export function callerKey({ caller }: Call): string {
  switch (caller.kind) {
    case 'device':
      return `device:${caller.userId}/${caller.deviceId}`;
    case 'service':
      return `service:${caller.service}`;
    case 'operator':
      return `operator:${caller.subject}`;
    case 'anonymous':
      throw new Error('ids belong to callers who said who they are');
  }
}
