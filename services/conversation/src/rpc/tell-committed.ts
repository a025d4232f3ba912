import type { StoreSessionResponse } from '@keytrail/contracts';
import type { Call } from '@keytrail/rpc';
import { attr, trace } from '@keytrail/telemetry';
import type { CheckedSession } from '../epochs/check-session.ts';

/** One line and the span's attributes for a session that became the session of its epoch. */
export function tellCommitted(call: Call, what: string, session: CheckedSession, stored: StoreSessionResponse): void {
  const { conversationId, sessionId, epoch, upload } = session;
  const { envelopesWritten, envelopesExpected } = stored;
  trace.getActiveSpan()?.setAttributes({
    [attr.conversationId]: conversationId,
    [attr.sessionId]: sessionId,
    [attr.epoch]: Number(epoch),
    [attr.envelopesWritten]: envelopesWritten,
    [attr.envelopesExpected]: envelopesExpected,
  });
  call.log.info(
    {
      conversationId,
      sessionId,
      epoch: String(epoch),
      envelopesWritten,
      envelopesExpected,
      withheld: upload.withholdings.length,
    },
    what,
  );
}
