import type { Envelope, GetInitialSessionResponse } from '@keytrail/contracts';
import {
  EnvelopeError,
  type EnvelopeProblem,
  HeaderError,
  openEnvelope,
  type Primitives,
  parseHeader,
  type Session,
  verifyHeader,
} from '@keytrail/crypto';
import { equalBytes, sameDevice } from './bytes.ts';
import type { Calls } from './calls.ts';
import type { CertifiedDevice, Directory } from './directory.ts';
import { type KeyMissError, missOf, SessionRefusedError } from './errors.ts';
import { Turns } from './flights.ts';
import type { OwnDevice } from './own-device.ts';
import type { RootKeys } from './root-keys.ts';
import type { RosterLogs } from './roster-logs.ts';
import type { HeldSession, Sessions } from './sessions.ts';
import type { Operation } from './tracing.ts';

/**
 * - `miss`: no envelope for this device
 * - `stale`: still the envelope that was found wrong before
 * - `wrong`: an envelope that must be rejected
 * - `unopenable`: nothing is wrong with it, but the prekey that it was sealed to is gone
 */
export type ReadOutcome =
  | { readonly kind: 'held'; readonly held: HeldSession }
  | { readonly kind: 'miss'; readonly miss: KeyMissError }
  | { readonly kind: 'stale' }
  | { readonly kind: 'wrong' | 'unopenable'; readonly attempt: number; readonly problem: EnvelopeProblem };

export interface ReadingParts {
  readonly calls: Calls;
  readonly primitives: Primitives;
  readonly own: OwnDevice;
  readonly rootKeys: RootKeys;
  readonly directory: Directory;
  readonly sessions: Sessions;
  readonly rosters: RosterLogs;
}

/** Reads a session from the server, believes nothing of it that does not verify, and stores its key. */
export class SessionReader {
  readonly #parts: ReadingParts;
  readonly #turns = new Turns();

  constructor(parts: ReadingParts) {
    this.#parts = parts;
  }

  /**
   * Envelopes of attempts up to `upTo` are known to be of no use.
   *
   * @throws SessionRefusedError, RefusalError.
   */
  async read(operation: Operation, conversationId: string, sessionId: string, upTo = -1): Promise<ReadOutcome> {
    const { calls } = this.#parts;
    let response: GetInitialSessionResponse;
    try {
      response = await calls.call(operation, (options) =>
        calls.session.getInitialSession({ conversationId, sessionId }, options),
      );
    } catch (error) {
      const miss = missOf(error, { conversationId, sessionId });
      if (miss === undefined) throw error;
      return { kind: 'miss', miss };
    }
    const { envelope } = response;
    if (envelope === undefined) throw new SessionRefusedError('header', 'the answer has no envelope');
    if (envelope.attempt <= upTo) return { kind: 'stale' };
    // Opening spends one-time prekeys: who comes second must find the first one's result, not a prekey that is gone.
    return this.#turns.take(`${conversationId} ${sessionId}`, () =>
      this.#open(operation, { conversationId, sessionId }, response, envelope),
    );
  }

  async #open(
    operation: Operation,
    name: { conversationId: string; sessionId: string },
    response: GetInitialSessionResponse,
    envelope: Envelope,
  ): Promise<ReadOutcome> {
    const { sessions, primitives, own, rootKeys, directory } = this.#parts;
    const before = await sessions.find(name.conversationId, name.sessionId);
    if (before !== undefined) return { kind: 'held', held: before };

    const session = await this.#verifyHeader(operation, name, response, envelope);
    await this.#checkPlace(session);
    await this.#parts.rosters.confirm(operation, { ...session.header, conversationId: session.conversationId });
    const { opener, spent } = await own.keysFor(envelope);
    let sessionKey: Uint8Array;
    try {
      const { sealer, sealerCertificate } = envelope;
      if (sealer === undefined || sealerCertificate === undefined) throw new EnvelopeError('malformed', 'sealer');
      const verdict = await directory.judge(operation, sealer.userId, sealerCertificate.rootKey);
      if (!verdict.trusted) throw new EnvelopeError('certificate', 'root-key');
      sessionKey = openEnvelope({ primitives, envelope, session, rootKey: verdict.rootKey, recipient: opener });
      if (!(await rootKeys.confirm(sealer.userId, verdict.rootKey))) throw new EnvelopeError('certificate', 'root-key');
    } catch (error) {
      if (!(error instanceof EnvelopeError)) throw error;
      const kind = error.problem === 'prekey-unknown' ? 'unopenable' : 'wrong';
      return { kind, attempt: envelope.attempt, problem: error.problem };
    }
    const { signedHeader } = response;
    const held = await sessions.save(
      {
        ...name,
        epoch: session.epoch,
        header: signedHeader?.header ?? new Uint8Array(),
        headerSignature: signedHeader?.signature ?? new Uint8Array(),
        sessionKey,
        attempt: envelope.attempt,
        sealer: { userId: envelope.sealer?.userId ?? '', deviceId: envelope.sealer?.deviceId ?? '' },
      },
      spent,
    );
    return { kind: 'held', held };
  }

  async #verifyHeader(
    operation: Operation,
    name: { conversationId: string; sessionId: string },
    response: GetInitialSessionResponse,
    envelope: Envelope,
  ): Promise<Session> {
    const { signedHeader, epoch } = response;
    if (signedHeader === undefined) throw new SessionRefusedError('header', 'the session has no signed header');
    try {
      const parsed = parseHeader(signedHeader.header);
      const { certificate } = await this.#initiator(operation, parsed, response, envelope);
      const initiator = { certificate, rootKey: certificate.rootKey };
      const session = verifyHeader(this.#parts.primitives, signedHeader, initiator, { ...name, epoch });
      const { userId } = session.initiator;
      if (!(await this.#parts.rootKeys.confirm(userId, initiator.rootKey))) throw rootKeyChanged(userId);
      return session;
    } catch (error) {
      if (!(error instanceof HeaderError)) throw error;
      const problem = error.problem === 'certificate' ? 'certificate' : 'header';
      throw new SessionRefusedError(problem, error.message, { cause: error });
    }
  }

  /** The initiator's certificate comes with the session, or with an envelope that the initiator sealed; else it is looked up. */
  async #initiator(
    operation: Operation,
    session: Session,
    { initiatorCertificate }: GetInitialSessionResponse,
    { sealer, sealerCertificate }: Envelope,
  ): Promise<Pick<CertifiedDevice, 'certificate'>> {
    const { directory } = this.#parts;
    const certificate = initiatorCertificate ?? (sameDevice(sealer, session.initiator) ? sealerCertificate : undefined);
    if (certificate === undefined) return directory.certified(operation, session.initiator);
    const { userId } = session.initiator;
    if (!(await directory.judge(operation, userId, certificate.rootKey)).trusted) throw rootKeyChanged(userId);
    return { certificate };
  }

  /** The header must fit those that this device has: one session to an epoch, each naming the one before. */
  async #checkPlace(session: Session): Promise<void> {
    const { sessions } = this.#parts;
    const { conversationId, epoch, header, initiator } = session;
    if (!header.deviceLists.some(({ userId }) => userId === initiator.userId)) {
      throw new SessionRefusedError('roster', 'the initiator is not in the roster of the header');
    }
    const [same, before, after] = await Promise.all([
      sessions.ofEpoch(conversationId, epoch),
      sessions.ofEpoch(conversationId, epoch - 1n),
      sessions.ofEpoch(conversationId, epoch + 1n),
    ]);
    if (same !== undefined && same.session.sessionId !== session.sessionId) {
      throw new SessionRefusedError('fork', `epoch ${epoch} has another session here`);
    }
    const follows = before === undefined || equalBytes(header.previousHeaderHash, before.session.headerHash);
    const precedes = after === undefined || equalBytes(after.session.header.previousHeaderHash, session.headerHash);
    if (!follows || !precedes) throw new SessionRefusedError('chain', `the header of epoch ${epoch} breaks the chain`);
  }
}

function rootKeyChanged(userId: string): SessionRefusedError {
  return new SessionRefusedError('root-key-changed', `the root key of ${userId} is not the pinned one`);
}
