import { createHash } from 'node:crypto';
import { toBinary } from '@bufbuild/protobuf';
import { type DeviceCertificate, type InitialSession, InitialSessionSchema, SessionService } from '@keytrail/contracts';
import {
  CertificateError,
  deviceCertificateStatement,
  envelopeStatement,
  headerStatement,
  type Session,
  type Statement,
  withholdingStatement,
} from '@keytrail/crypto';
import { verifySignatures } from '@keytrail/crypto/node';
import { type Call, type Rpc, unary } from '@keytrail/rpc';
import { attr, currentTraceparent, keepTrace, trace } from '@keytrail/telemetry';
import type { DeviceId } from '../domain/device.ts';
import { findSessionProblem, readHeader } from '../domain/whole-session.ts';
import type { Parts } from '../parts.ts';
import {
  certificateInvalid,
  sessionAborted,
  sessionConflict,
  sessionRefused,
  signatureInvalid,
  userErased,
} from '../refusals.ts';
import { wasDiscarded } from '../store/discarded-sessions.ts';
import { erasedAmong, isOfErasedUser } from '../store/erasures.ts';
import { insertWholeSession, readStoredSession, type StoredSession } from '../store/sessions.ts';

/** The only write path of sessions: a session with all its envelopes and withholdings, in one transaction. */
export function storeSession({
  db,
  writerBuild,
  writerSchema,
}: Pick<Parts, 'db' | 'writerBuild' | 'writerSchema'>): Rpc {
  return unary(SessionService.method.storeSession, {
    allow: ['service:conversation'],
    async handle(request, call) {
      const { conversationId, initiator, session, rosterDevices } = request;
      if (!initiator || !session?.signedHeader) throw new Error('the contract requires these fields');
      const header = readHeader(session);
      if ('kind' in header) throw sessionRefused(header);
      const { sessionId } = header;
      const contentDigest = digestOf(session, initiator);

      // A repetition stays one after the roster has changed; so it is found before the roster is looked at.
      const earlier = await readStoredSession(db, conversationId, sessionId);
      if (earlier) return repeated(call, header, earlier, contentDigest);

      const problem = findSessionProblem(header, { conversationId, initiator, session, rosterDevices });
      if (problem) throw sessionRefused(problem);
      await verifyAll(session, header);

      keepTrace('session stored');
      const expected = session.envelopes.length;
      const storing = db.transaction(async (tx) => {
        const rows = await insertWholeSession(tx, {
          conversationId,
          header: header.header,
          headerHash: header.headerHash,
          session,
          contentDigest,
          writerBuild,
          writerSchema,
          traceparent: currentTraceparent(),
        });
        if (rows && rows.envelopes !== expected)
          throw new Error(`${rows.envelopes} envelopes written, ${expected} expected`);
        return rows;
      });
      const written = await storing.catch((error: unknown) => {
        if (wasDiscarded(error)) throw sessionAborted(sessionId);
        return refuseErased(db, session, error);
      });
      if (!written) {
        const winner = await readStoredSession(db, conversationId, sessionId);
        // Discarded between the two statements.
        if (!winner) throw sessionAborted(sessionId);
        return repeated(call, header, winner, contentDigest);
      }
      tell(call, header, written, expected, 'session stored');
      return { envelopesWritten: written.envelopes, envelopesExpected: expected, alreadyStored: false };
    },
  });
}

/** A recipient may be erased between the look at the device lists and the write; whoever asks again finds the user gone. */
async function refuseErased(db: Parts['db'], session: InitialSession, error: unknown): Promise<never> {
  if (!isOfErasedUser(error)) throw error;
  const named = [
    ...session.envelopes.map(({ recipient }) => recipient),
    ...session.withholdings.map(({ device }) => device),
  ];
  const [erased = ''] = await erasedAmong(
    db,
    named.flatMap((device) => (device ? [device.userId] : [])),
  );
  throw userErased(erased);
}

function digestOf(session: InitialSession, { userId, deviceId }: DeviceId): Buffer {
  return createHash('sha256')
    .update(`${userId} ${deviceId}\n`)
    .update(toBinary(InitialSessionSchema, session))
    .digest();
}

function repeated(call: Call, session: Session, stored: StoredSession, contentDigest: Buffer) {
  const { sessionId } = session;
  if (stored.contentDigest === null || !contentDigest.equals(stored.contentDigest)) throw sessionConflict(sessionId);
  const { envelopes, envelopesExpected } = stored;
  tell(call, session, stored, envelopesExpected, 'session stored before');
  return { envelopesWritten: envelopes, envelopesExpected, alreadyStored: true };
}

/** Verifies the header's, the certificate's, each envelope's and each withholding's signature, in one batch off the event loop. */
async function verifyAll(session: InitialSession, header: Session): Promise<void> {
  const { signedHeader, initiatorCertificate } = session;
  if (!signedHeader) throw new Error('the contract requires a signed header');
  const signingKey = header.header.initiatorSigningKey;
  const statements: { field: string; statement: Statement }[] = [
    { field: 'session.signed_header.signature', statement: headerStatement(signedHeader, header) },
    ...session.envelopes.map((envelope, index) => ({
      field: `session.envelopes[${index}].signature`,
      statement: envelopeStatement(envelope, header),
    })),
    ...session.withholdings.map((withholding, index) => ({
      field: `session.withholdings[${index}].signature`,
      statement: withholdingStatement(withholding, header, signingKey),
    })),
  ];
  const [certified = false, ...held] = await verifySignatures([
    certificateStatement(header, initiatorCertificate),
    ...statements.map(({ statement }) => statement),
  ]);
  if (!certified) throw certificateInvalid('session.initiator_certificate', 'signature');
  const broken = statements[held.indexOf(false)];
  if (broken) throw signatureInvalid(broken.field);
}

function certificateStatement({ header, initiator }: Session, certificate: DeviceCertificate | undefined): Statement {
  const { initiatorIdentityKey: identityKey, initiatorSigningKey: signingKey } = header;
  try {
    return deviceCertificateStatement({ ...initiator, identityKey, signingKey }, certificate);
  } catch (error) {
    if (!(error instanceof CertificateError)) throw error;
    throw certificateInvalid('session.initiator_certificate', error.problem);
  }
}

function tell(
  call: Call,
  { conversationId, sessionId, epoch }: Session,
  written: { readonly envelopes: number; readonly withholdings: number },
  expected: number,
  message: string,
): void {
  trace.getActiveSpan()?.setAttributes({
    [attr.conversationId]: conversationId,
    [attr.sessionId]: sessionId,
    [attr.epoch]: Number(epoch),
    [attr.envelopesWritten]: written.envelopes,
    [attr.envelopesExpected]: expected,
  });
  call.log.info(
    {
      conversationId,
      sessionId,
      epoch: String(epoch),
      envelopesWritten: written.envelopes,
      envelopesExpected: expected,
      withholdingsWritten: written.withholdings,
    },
    message,
  );
}
