import { randomUUID } from 'node:crypto';
import { createServiceIdentity } from '@keytrail/auth';
import {
  type Envelope,
  type KeyRequest,
  KeyRequestKind,
  KeyRequestKindSchema,
  KeyRequestPriority,
  KeyRequestPrioritySchema,
  KeyRequestStateSchema,
} from '@keytrail/contracts';
import { readRefusal } from '@keytrail/rpc';
import { startTelemetry } from '@keytrail/telemetry';
import { expect } from 'vitest';
import type { Dispatcher } from '../src/dispatch-key-request.ts';
import { sweepKeyRequests } from '../src/jobs/sweep-key-requests.ts';
import { connectPeers } from '../src/peers.ts';
import { noteRevokedDevices } from '../src/store/revoked-devices.ts';
import {
  isOpen,
  type Kind,
  type Model,
  type ModelRequest,
  type Name,
  names,
  type Priority,
  userOf,
} from './key-request-model.ts';
import { createPerson, type MadeSession, makeSession, type Person, reseal, type TestDevice } from './people.ts';
import type { World } from './world.ts';

/** What a call led to: its answer, or the reason of its refusal. */
export type Outcome<T> = { readonly answer: T; readonly reason?: undefined } | { readonly reason: string };

export async function outcomeOf<T>(pending: Promise<T>): Promise<Outcome<T>> {
  try {
    return { answer: await pending };
  } catch (error) {
    return { reason: readRefusal(error).reason || String(error) };
  }
}

export interface Row {
  readonly key_request_id: string;
  readonly device_id: string;
  readonly kind: string;
  readonly priority: string;
  readonly state: string;
  readonly attempt_base: number;
  readonly attempt: number;
  readonly accepted_attempt: number | null;
  readonly ended_because: string | null;
  readonly wanted: boolean;
  readonly due: boolean;
  readonly looks_again: boolean;
  readonly offers: { holder: string; attempt: number; standing: boolean; declined: boolean }[] | null;
}

/** The service with one session of two people, and the time in the hands of the test: nothing lapses by itself, nobody looks by itself. */
export class Real {
  readonly world: World;
  readonly made: MadeSession;
  readonly devices: Readonly<Record<Name, TestDevice>>;
  readonly people: Readonly<Record<'alice' | 'bob', Person>>;
  readonly #dispatcher: Dispatcher;

  private constructor(world: World, dispatcher: Dispatcher) {
    const people = { alice: createPerson('alice'), bob: createPerson('bob') };
    const add = (name: Name) => people[userOf(name)].addDevice(name);
    const [initiator, tablet, bobs] = [add('initiator'), add('tablet'), add('bobs')];
    this.made = makeSession({ initiator, covered: [initiator, tablet, bobs] });
    this.devices = { initiator, tablet, bobs, late: add('late'), bobsLate: add('bobsLate') };
    this.people = people;
    this.world = world;
    this.#dispatcher = dispatcher;
  }

  static async begin(world: World, dispatcher: Dispatcher): Promise<Real> {
    const real = new Real(world, dispatcher);
    await world.store(real.made);
    world.peers.commit(real.made, [real.people.alice, real.people.bob]);
    return real;
  }

  as(name: Name) {
    return this.world.as(this.devices[name]);
  }

  wanted(kind: Kind, priority: Priority) {
    const { conversationId, sessionId } = this.made.session;
    return { conversationId, sessionId, kind: KeyRequestKind[kind], priority: KeyRequestPriority[priority] };
  }

  requestInput(kind: Kind, priority: Priority, rejectedAttempt: number) {
    return { requestId: randomUUID(), ...this.wanted(kind, priority), rejectedAttempt };
  }

  envelope(holder: Name, to: Name, attempt: number): Envelope {
    return reseal(this.made, this.devices[holder], this.devices[to], attempt);
  }

  setOnline(name: Name, online: boolean): void {
    const { userId, deviceId } = this.devices[name];
    if (online) this.world.peers.attach(this.devices[name]);
    else this.world.peers.online.delete(`${userId} ${deviceId}`);
  }

  setMember(user: 'alice' | 'bob', member: boolean): void {
    const spans = member ? [{ fromEpoch: 1n, toEpoch: 0n }] : [];
    this.world.peers.conversations.get(this.made.session.conversationId)?.members.set(this.people[user].userId, spans);
  }

  async revoke(name: Name): Promise<void> {
    const { userId, deviceId } = this.devices[name];
    const revokedAt = new Date();
    this.world.peers.revoked.set(`${userId} ${deviceId}`, revokedAt);
    await noteRevokedDevices(this.world.service.db, [{ userId, deviceId, revokedAt }]);
  }

  /** The offers of a request lapse: their time is set back. */
  async lapse(keyRequestId: string): Promise<void> {
    await this.world.sql.query(
      `WITH lapsed AS (UPDATE offers SET lapses_at = now() - interval '1 ms' WHERE key_request_id = $1 AND lapses_at > now())
       UPDATE key_requests SET next_attempt_at = now() WHERE key_request_id = $1`,
      [keyRequestId],
    );
  }

  async timeIsUp(keyRequestId: string): Promise<void> {
    await this.world.sql.query(
      `UPDATE key_requests SET expires_at = now() - interval '1 ms', next_attempt_at = now() WHERE key_request_id = $1`,
      [keyRequestId],
    );
  }

  async look(): Promise<void> {
    while (await sweepKeyRequests(this.#dispatcher));
  }

  async rows(): Promise<Row[]> {
    const { rows } = await this.world.sql.query<Row>(
      `SELECT k.*, k.holder_wanted_at IS NOT NULL AS wanted, k.next_attempt_at <= now() AS due, k.next_attempt_at IS NOT NULL AS looks_again,
         (SELECT json_agg(json_build_object('holder', o.device_id, 'attempt', o.attempt, 'standing', o.lapses_at > now(),
            'declined', o.declined_at IS NOT NULL) ORDER BY o.attempt, o.device_id)
          FROM offers o WHERE o.key_request_id = k.key_request_id) AS offers
       FROM key_requests k WHERE k.session_id = $1`,
      [this.made.session.sessionId],
    );
    return rows;
  }

  /** The rows are what the model says, to the offer and to the envelope. */
  async agreesWith(model: Model): Promise<void> {
    const rows = new Map((await this.rows()).map((row) => [row.key_request_id, row]));
    expect(rows.size).toBe(model.requests.length);
    for (const request of model.requests) expect(seenRow(rows.get(request.id))).toEqual(wantedRow(request));
    for (const name of names)
      expect(model.requests.filter((one) => one.requester === name && isOpen(one)).length).toBeLessThan(2);
    const { rows: envelopes } = await this.world.sql.query(
      `SELECT device_id AS device, attempt, sealer_device_id AS sealer, rejected_at IS NOT NULL AS rejected
       FROM envelopes WHERE session_id = $1`,
      [this.made.session.sessionId],
    );
    const inOrder = (list: { device: string; attempt: number }[]) =>
      list.toSorted((a, b) => a.device.localeCompare(b.device) || a.attempt - b.attempt);
    expect(inOrder(envelopes)).toEqual(inOrder(model.envelopes.map((envelope) => ({ ...envelope }))));
  }

  /** The requests that the service lists to a device are those that the model has of it. */
  answerAgrees(request: ModelRequest, answer: KeyRequest | undefined): void {
    expect(answer).toBeDefined();
    expect({
      id: answer?.keyRequestId,
      kind: KeyRequestKindSchema.value[answer?.kind ?? 0]?.localName,
      priority: KeyRequestPrioritySchema.value[answer?.priority ?? 0]?.localName,
      state: KeyRequestStateSchema.value[answer?.state ?? 0]?.localName,
      attempt: answer?.attempt,
      because: answer?.endedBecause,
    }).toEqual({
      id: request.id,
      kind: request.kind,
      priority: request.priority,
      state: request.state,
      attempt: request.attempt > request.base ? request.attempt : 0,
      because: request.because ?? '',
    });
  }
}

function seenRow(row: Row | undefined) {
  if (!row) return undefined;
  const open = row.ended_because === null;
  return {
    id: row.key_request_id,
    requester: row.device_id,
    kind: row.kind,
    priority: row.priority,
    state: row.state,
    base: row.attempt_base,
    attempt: row.attempt,
    accepted: row.accepted_attempt,
    because: row.ended_because,
    wanted: row.wanted,
    looksAgain: row.looks_again,
    due: open && row.due,
    offers: row.offers ?? [],
  };
}

function wantedRow(request: ModelRequest) {
  const { id, requester, kind, priority, state, base, attempt, accepted, because, wanted, due } = request;
  const offers = request.offers
    .map((offer) => ({ ...offer }))
    .sort((a, b) => a.attempt - b.attempt || (a.holder < b.holder ? -1 : 1));
  return {
    id,
    requester,
    kind,
    priority,
    state,
    base,
    attempt,
    accepted,
    because,
    wanted,
    looksAgain: true,
    due,
    offers,
  };
}

/** A dispatcher beside the service's own, which is switched off. */
export function startDispatcher(world: World): { dispatcher: Dispatcher; stop(): Promise<void> } {
  const telemetry = startTelemetry({ service: 'session', config: world.config });
  const peers = connectPeers(world.config, createServiceIdentity(world.config, 'session'));
  return {
    dispatcher: {
      db: world.service.db,
      peers,
      policy: world.config,
      log: telemetry.log,
      isHeard: () => true,
    } as Dispatcher,
    async stop() {
      peers.close();
      await telemetry.shutdown();
    },
  };
}
