import { invalidField } from '@keytrail/rpc';
import { ChangeCursorMalformed } from '@keytrail/storage';

/** Reads a cursor of changes; one that was never given out is the caller's fault. */
export function readingCursor<T>(read: () => T): T {
  try {
    return read();
  } catch (error) {
    if (!(error instanceof ChangeCursorMalformed)) throw error;
    throw invalidField('cursor', 'must be next_cursor of an earlier answer, or empty');
  }
}
