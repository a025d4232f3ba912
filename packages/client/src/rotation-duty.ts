import { timestampDate } from '@bufbuild/protobuf/wkt';
import { type GetRotationResponse, RotationDueReason } from '@keytrail/contracts';
import type { Primitives } from '@keytrail/crypto';
import { sameDevice } from './bytes.ts';
import type { Calls } from './calls.ts';
import { type Clock, pause } from './clock.ts';
import type { Conversations } from './conversations.ts';
import type { Emitter } from './emitter.ts';
import { isDecided, RefusalError, RotationLost } from './errors.ts';
import type { ClientEvents } from './events.ts';
import { eachOf } from './lanes.ts';
import type { OwnDevice } from './own-device.ts';
import type { Operation, OperationSettings, Tracing } from './tracing.ts';

export interface RotationDutyParts {
  readonly calls: Calls;
  readonly primitives: Primitives;
  readonly clock: Clock;
  readonly own: OwnDevice;
  readonly conversations: Conversations;
  readonly events: Emitter<ClientEvents>;
  readonly tracing: Tracing;
  /** A rotation that nobody asked this very device for begins up to so many milliseconds later. */
  readonly jitterMs: number;
}

const rotationsAtOnce = 2;
/** How often a rotation that others are asked for is looked at before it is left to them. */
const looksAtMost = 3;
/** Whoever is asked has less; a clock that is wrong must not keep this device waiting. */
const longestTurnMs = 60_000;

/** Makes the rotations that are due: at once those that this device is asked for, the others when nobody else does. */
export class RotationDuty {
  readonly #parts: RotationDutyParts;
  readonly #looking = new Map<string, AbortController>();
  readonly #asked = new Set<string>();

  constructor(parts: RotationDutyParts) {
    this.#parts = parts;
  }

  /** This device is asked for by name. */
  async asked(conversationId: string, signal: AbortSignal, within?: OperationSettings['within']): Promise<void> {
    // Asked once more, it is the same rotation.
    if (this.#asked.has(conversationId)) return;
    this.#asked.add(conversationId);
    this.#looking.get(conversationId)?.abort(new Error('this device is asked for'));
    try {
      await this.#once(conversationId, signal, (mine) =>
        this.#parts.tracing.run('rotate when asked', { within, signal: mine }, async (operation) => {
          const rotation = await this.#rotationOf(operation, conversationId);
          if (isDue(rotation)) await this.#make(operation, conversationId, rotation);
        }),
      );
    } finally {
      this.#asked.delete(conversationId);
    }
  }

  /** Somebody said that a rotation is due. */
  async due(conversationId: string, signal: AbortSignal): Promise<void> {
    if (this.#looking.has(conversationId)) return;
    await this.#once(conversationId, signal, async (mine) => {
      for (let looks = 0; looks < looksAtMost; looks += 1) {
        await pause(this.#parts.clock, this.#jitter(), mine, true);
        const untilOthers = await this.#parts.tracing.run('rotate when due', { signal: mine }, (operation) =>
          this.#look(operation, conversationId),
        );
        if (untilOthers === undefined) return;
        await pause(this.#parts.clock, untilOthers, mine, true);
      }
    });
  }

  /** What the greeting says, the longest due first. */
  async allDue(conversationIds: readonly string[], signal: AbortSignal): Promise<void> {
    await eachOf(conversationIds, rotationsAtOnce, (conversationId) => this.due(conversationId, signal));
  }

  async #once(
    conversationId: string,
    signal: AbortSignal,
    work: (signal: AbortSignal) => Promise<void>,
  ): Promise<void> {
    const control = new AbortController();
    this.#looking.set(conversationId, control);
    try {
      await work(AbortSignal.any([signal, control.signal]));
    } catch (error) {
      // Asked for by name meanwhile: that one goes on.
      if (!control.signal.aborted) throw error;
    } finally {
      if (this.#looking.get(conversationId) === control) this.#looking.delete(conversationId);
    }
  }

  /** How long another device has for it, when one is asked. */
  async #look(operation: Operation, conversationId: string): Promise<number | undefined> {
    const { own, clock } = this.#parts;
    const rotation = await this.#rotationOf(operation, conversationId);
    if (!isDue(rotation)) return undefined;
    const { askedDevice, askedUntil } = rotation;
    const left = askedUntil ? timestampDate(askedUntil).getTime() - clock.now().getTime() : 0;
    if (askedDevice !== undefined && !sameDevice(askedDevice, own) && left > 0) return Math.min(left, longestTurnMs);
    await this.#make(operation, conversationId, rotation);
    return undefined;
  }

  async #rotationOf(operation: Operation, conversationId: string): Promise<GetRotationResponse> {
    const { calls } = this.#parts;
    return calls.call(operation, (options) => calls.conversation.getRotation({ conversationId }, options));
  }

  async #make(operation: Operation, conversationId: string, rotation: GetRotationResponse): Promise<void> {
    const { conversations, events, own } = this.#parts;
    try {
      const made = await conversations.rotate(operation, conversationId, rotation);
      events.emit('rotated', { conversationId, sessionId: made.sessionId, epoch: made.epoch });
    } catch (error) {
      operation.signal.throwIfAborted();
      // Somebody else made it, and its session is being opened.
      if (error instanceof RotationLost) return;
      if (sameDevice(rotation.askedDevice, own) && cannot(error)) {
        await this.#decline(operation, conversationId, rotation.conversation?.epoch ?? 1n);
      }
      throw error;
    }
  }

  async #decline(operation: Operation, conversationId: string, expectedEpoch: bigint): Promise<void> {
    const { calls } = this.#parts;
    await calls.call(operation, (options) =>
      calls.conversation.declineRotation({ conversationId, expectedEpoch }, options),
    );
  }

  #jitter(): number {
    const [byte = 0] = this.#parts.primitives.randomBytes(1);
    return (this.#parts.jitterMs * byte) / 255;
  }
}

function isDue({ conversation }: GetRotationResponse): boolean {
  return conversation !== undefined && conversation.rotationDue !== RotationDueReason.UNSPECIFIED;
}

/** Whether trying again would end the same; a server that was not reached says nothing about it. */
function cannot(error: unknown): boolean {
  return !(error instanceof RefusalError) || isDecided(error);
}
