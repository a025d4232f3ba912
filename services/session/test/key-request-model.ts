/** What a key request should become, said again and simply: names instead of ids, sets instead of orders, no clock. */

export const names = ['initiator', 'tablet', 'late', 'bobs', 'bobsLate'] as const;
export type Name = (typeof names)[number];
export type User = 'alice' | 'bob';
export type Kind = 'MISSING' | 'REWRAP' | 'REJECTED';
export type Priority = 'BACKGROUND' | 'FOREGROUND';
export type State = 'WAITING_FOR_HOLDER' | 'OFFERED' | 'FULFILLED' | 'EXPIRED' | 'CANCELLED' | 'UNFULFILLABLE';

export const userOf = (name: Name): User => (name === 'bobs' || name === 'bobsLate' ? 'bob' : 'alice');

export interface ModelOffer {
  readonly holder: Name;
  readonly attempt: number;
  standing: boolean;
  declined: boolean;
}

export interface ModelRequest {
  readonly id: string;
  readonly requester: Name;
  kind: Kind;
  priority: Priority;
  readonly base: number;
  readonly offers: ModelOffer[];
  state: State;
  attempt: number;
  accepted: number | null;
  because: string | null;
  /** It was told in this wait that a holder is wanted. */
  wanted: boolean;
  /** It is to be looked at now. */
  due: boolean;
  timeIsUp: boolean;
}

export interface ModelEnvelope {
  readonly device: Name;
  readonly attempt: number;
  readonly sealer: Name;
  rejected: boolean;
}

export class Model {
  readonly online = new Set<Name>();
  readonly members = new Set<User>(['alice', 'bob']);
  readonly revoked = new Set<Name>();
  readonly requests: ModelRequest[] = [];
  readonly envelopes: ModelEnvelope[] = (['initiator', 'tablet', 'bobs'] as const).map((device) => ({
    device,
    attempt: 0,
    sealer: 'initiator',
    rejected: false,
  }));
}

export const isOpen = ({ state }: ModelRequest) => state === 'WAITING_FOR_HOLDER' || state === 'OFFERED';

export function openRequestOf(model: Model, device: Name): ModelRequest | undefined {
  return model.requests.find((request) => request.requester === device && isOpen(request));
}

export function newestEnvelope(model: Model, device: Name): ModelEnvelope | undefined {
  return model.envelopes.filter((one) => one.device === device).at(-1);
}

/** Why a device may not ask for a key; undefined when it may. */
export function whyNot(model: Model, device: Name): string | undefined {
  if (!model.members.has(userOf(device))) return 'NOT_FOUND_OR_NOT_PERMITTED';
  return model.revoked.has(device) ? 'DEVICE_REVOKED' : undefined;
}

export const offersAtOnce = 2;
export const attemptsMax = 4;
export const rejectionsMax = 5;
const rejectionsMost = 3;

/** What a look at an open request leads to. */
export type Look =
  | { readonly kind: 'end'; readonly state: State; readonly because: string }
  | { readonly kind: 'wait' }
  | { readonly kind: 'stay' }
  | { readonly kind: 'offer'; readonly count: number; readonly free: readonly Ranked[] };

/** A holder that may be asked: those who were asked less often come first, then the lower rank. */
export interface Ranked {
  readonly holder: Name;
  readonly asked: number;
  readonly rank: number;
}

const end = (because: string, state: State = 'UNFULFILLABLE'): Look => ({ kind: 'end', state, because });

/** A look by the dispatcher, which asks about the requester again. */
export function look(model: Model, request: ModelRequest): Look {
  if (request.timeIsUp) return end('expired', 'EXPIRED');
  if (model.revoked.has(request.requester)) return end('requester_revoked');
  if (!model.members.has(userOf(request.requester))) return end('requester_not_entitled');
  return firstLook(model, request);
}

export function firstLook(model: Model, request: ModelRequest): Look {
  const eligible = names.filter(
    (name) =>
      name !== request.requester &&
      (name === 'initiator' || newestEnvelope(model, name) !== undefined) &&
      model.members.has(userOf(name)) &&
      !model.revoked.has(name),
  );
  if (eligible.length === 0) return end('no_holder_exists');
  const rejected = model.envelopes.filter((one) => one.device === request.requester && one.rejected).length;
  if (request.kind === 'REJECTED' && rejected >= rejectionsMax) return end('attempts_exhausted');
  const rejections = (name: Name) =>
    model.envelopes.filter((one) => one.device === request.requester && one.sealer === name && one.rejected).length;
  const declined = (name: Name) => request.offers.some((offer) => offer.holder === name && offer.declined);
  const anotherIsLeft = eligible.some((name) => rejections(name) === 0 && !declined(name));
  const willing = eligible.filter(
    (name) => !declined(name) && (rejections(name) === 0 || (!anotherIsLeft && rejections(name) < rejectionsMost)),
  );
  if (willing.length === 0) return end('all_holders_declined');

  const offersTo = (name: Name) => request.offers.filter((offer) => offer.holder === name);
  const stands = (name: Name) => offersTo(name).some(({ standing }) => standing);
  const standing = willing.filter(stands).length;
  const free = willing
    .filter((name) => model.online.has(name) && !stands(name))
    .map((holder) => ({ holder, asked: offersTo(holder).length, rank: rankOf(request.requester, holder) }));
  const count = Math.min(free.length, Math.max(0, offersAtOnce - standing));
  if (count > 0 && request.attempt - request.base < attemptsMax) return { kind: 'offer', count, free };
  if (standing > 0) return { kind: 'stay' };
  return count > 0 ? end('attempts_exhausted') : { kind: 'wait' };
}

/** Own devices first, then the initiator, then the others. */
function rankOf(requester: Name, holder: Name): number {
  if (userOf(requester) === userOf(holder)) return 0;
  return holder === 'initiator' ? 1 : 2;
}

/** Takes the step of a look; who was offered it, the service chose. */
export function takeStep(request: ModelRequest, step: Look, chosen: readonly Name[]): void {
  request.due = false;
  switch (step.kind) {
    case 'end':
      endRequest(request, step.state, step.because);
      break;
    case 'wait':
      request.state = 'WAITING_FOR_HOLDER';
      request.wanted = true;
      break;
    case 'stay':
      request.state = 'OFFERED';
      break;
    case 'offer':
      request.state = 'OFFERED';
      request.attempt++;
      request.wanted = false;
      for (const holder of chosen)
        request.offers.push({ holder, attempt: request.attempt, standing: true, declined: false });
  }
}

/** What is asked again for an open request: it is raised, never lowered; one that waits, or whose envelope was rejected just now, goes on. */
export function raise(request: ModelRequest, kind: Kind, priority: Priority, rejectedNow: boolean): void {
  const looked = priority === 'FOREGROUND' && request.priority === 'BACKGROUND';
  const disputed = kind === 'REJECTED' && request.kind !== 'REJECTED';
  if (disputed) request.kind = kind;
  if (looked) request.priority = priority;
  if (rejectedNow || ((looked || disputed) && request.state === 'WAITING_FOR_HOLDER')) request.due = true;
}

export function endRequest(request: ModelRequest, state: State, because: string): void {
  request.state = state;
  request.because = because;
  request.due = false;
}

/** Attempts count on over all requests of a device. */
export function nextBase(model: Model, device: Name): number {
  const mine = [
    ...model.envelopes.filter((one) => one.device === device),
    ...model.requests.filter((one) => one.requester === device),
  ];
  return Math.max(0, ...mine.map(({ attempt }) => attempt));
}
