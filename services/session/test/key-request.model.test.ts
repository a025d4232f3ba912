import { randomUUID } from 'node:crypto';
import { create } from '@bufbuild/protobuf';
import {
  DeclineReason,
  type Envelope,
  EnvelopeSchema,
  KeyRejectionReason,
  type KeyRequest,
  type RequestKeyResponse,
} from '@keytrail/contracts';
import fc from 'fast-check';
import { afterAll, beforeAll, expect, it } from 'vitest';
import {
  attemptsMax,
  endRequest,
  firstLook,
  isOpen,
  type Kind,
  type Look,
  look,
  Model,
  type ModelEnvelope,
  type ModelRequest,
  type Name,
  names,
  newestEnvelope,
  nextBase,
  offersAtOnce,
  openRequestOf,
  type Priority,
  raise,
  rejectionsMax,
  takeStep,
  type User,
  userOf,
  whyNot,
} from './key-request-model.ts';
import { type Outcome, outcomeOf, Real, startDispatcher } from './key-request-real.ts';
import { startWorld, type World } from './world.ts';

let world: World;
let dispatching: ReturnType<typeof startDispatcher>;
beforeAll(async () => {
  const hour = 3_600_000;
  world = await startWorld(
    {
      offerMs: hour,
      waitMs: hour,
      expiryMs: 24 * hour,
      hedgeMs: 0,
      attemptsMax,
      rejectionsMax,
      offersAtOnce,
      sweepMs: hour,
    },
    { consumers: false, sweep: false },
  );
  dispatching = startDispatcher(world);
}, 120_000);
afterAll(async () => {
  await dispatching?.stop();
  await world?.stop();
});

/** What is sent again, as it was sent first. */
interface Sent {
  readonly requests: {
    readonly by: Name;
    readonly kind: Kind;
    readonly priority: Priority;
    readonly input: ReturnType<Real['requestInput']>;
    first: RequestKeyResponse | undefined;
  }[];
  /** Calls that were answered: the same one again has the same answer, whatever happened since. */
  readonly answered: { readonly again: () => Promise<unknown>; readonly first: unknown }[];
}

interface Subject {
  readonly real: Real;
  readonly sent: Sent;
}

type Step = (model: Model, subject: Subject) => Promise<void>;

/** A command: a step whose rows must be those of the model afterwards. */
class Command implements fc.AsyncCommand<Model, Subject> {
  readonly #name: string;
  readonly #step: Step;
  readonly #check: (model: Readonly<Model>) => boolean;

  constructor(name: string, step: Step, check: (model: Readonly<Model>) => boolean = () => true) {
    this.#name = name;
    this.#step = step;
    this.#check = check;
  }

  check(model: Readonly<Model>): boolean {
    return this.#check(model);
  }

  async run(model: Model, subject: Subject): Promise<void> {
    await this.#step(model, subject);
    await subject.real.agreesWith(model);
  }

  toString(): string {
    return this.#name;
  }
}

const anyRequest = (model: Readonly<Model>) => model.requests.length > 0;
const pick = <T>(list: readonly T[], n: number): T => list[n % list.length] as T;

/** Open ones first: they are what most can happen to. */
function pickRequest(model: Model, n: number): ModelRequest {
  const open = model.requests.filter(isOpen);
  return n % 4 < 3 && open.length > 0 ? pick(open, n) : pick(model.requests, n);
}

/** Who was offered a step is for the service to choose: by how often they were asked, then by rank. */
async function follow(real: Real, request: ModelRequest, step: Look): Promise<void> {
  if (step.kind !== 'offer') return takeStep(request, step, []);
  const row = (await real.rows()).find((one) => one.key_request_id === request.id);
  const chosen = (row?.offers ?? [])
    .filter(({ attempt }) => attempt === request.attempt + 1)
    .map(({ holder }) => holder as Name);
  const order = (holders: readonly { asked: number; rank: number }[]) =>
    holders.map(({ asked, rank }) => asked * 10 + rank).sort((a, b) => a - b);
  expect(step.free.map(({ holder }) => holder)).toEqual(expect.arrayContaining(chosen));
  expect(order(step.free.filter(({ holder }) => chosen.includes(holder)))).toEqual(
    order(step.free).slice(0, step.count),
  );
  takeStep(request, step, chosen);
}

/** What RequestKey should lead to; the model has the request afterwards. */
async function requested(
  model: Model,
  { real, sent }: Subject,
  by: Name,
  input: ReturnType<Real['requestInput']>,
  kind: Kind,
  priority: Priority,
): Promise<void> {
  const before = sent.requests.find((one) => one.input.requestId === input.requestId);
  const outcome: Outcome<RequestKeyResponse> = await outcomeOf(real.as(by).requestKey(input));
  if (before?.first) return expect(outcome).toEqual({ answer: before.first });
  const first = outcome.reason === undefined ? outcome.answer : undefined;
  if (before) before.first = first;
  else sent.requests.push({ by, kind, priority, input, first });
  const envelope = model.envelopes.find((one) => one.device === by && one.attempt === input.rejectedAttempt);
  const refused = whyNotRequested(model, by, kind) ?? (kind === 'REJECTED' && !envelope ? 'INVALID_FIELD' : undefined);
  if (refused !== undefined || outcome.reason !== undefined) return expect(outcome.reason).toBe(refused);
  const rejected = kind === 'REJECTED' ? envelope : undefined;
  await opened(model, real, { by, kind, priority, rejected }, outcome.answer.keyRequest);
}

function whyNotRequested(model: Model, by: Name, kind: Kind): string | undefined {
  const needless = kind === 'MISSING' && newestEnvelope(model, by) !== undefined;
  return whyNot(model, by) ?? (needless ? 'KEY_REQUEST_NOT_NEEDED' : undefined);
}

/** The device has an open request afterwards, by whichever call: a new one, or the one that it had, raised. */
async function opened(
  model: Model,
  real: Real,
  of: { by: Name; kind: Kind; priority: Priority; rejected?: ModelEnvelope | undefined },
  answer: KeyRequest | undefined,
): Promise<void> {
  const { by, kind, priority, rejected } = of;
  const rejectedNow = rejected?.rejected === false;
  if (rejected) rejected.rejected = true;
  let request = openRequestOf(model, by);
  if (request) raise(request, kind, priority, rejectedNow);
  else {
    request = newRequest(model, answer?.keyRequestId ?? '', by, kind, priority);
    await follow(real, request, firstLook(model, request));
  }
  real.answerAgrees(request, answer);
}

function newRequest(model: Model, id: string, requester: Name, kind: Kind, priority: Priority): ModelRequest {
  const base = nextBase(model, requester);
  const request: ModelRequest = {
    id,
    requester,
    kind,
    priority,
    base,
    offers: [],
    state: 'WAITING_FOR_HOLDER',
    attempt: base,
    accepted: null,
    because: null,
    wanted: false,
    due: false,
    timeIsUp: false,
  };
  model.requests.push(request);
  return request;
}

type How = 'right' | 'forged' | 'not offered';

/** How a holder would fulfil a request: as it was offered, if it was. */
function fulfilment(real: Real, request: ModelRequest, holder: Name, attempt: number, how: How) {
  const sealed: Envelope = real.envelope(holder, request.requester, attempt);
  const signature = sealed.signature.with(3, 1 ^ (sealed.signature[3] ?? 0));
  const envelope = how === 'forged' ? create(EnvelopeSchema, { ...sealed, signature }) : sealed;
  return { keyRequestId: request.id, attempt, envelope };
}

function fulfilled(model: Model, request: ModelRequest, holder: Name, attempt: number): void {
  endRequest(request, 'FULFILLED', 'key_delivered');
  request.accepted = attempt;
  model.envelopes.push({ device: request.requester, attempt, sealer: holder, rejected: false });
}

const requesters = fc.constantFrom<Name>('late', 'bobsLate', 'bobs', 'tablet');
const priorities = fc.constantFrom<Priority>('BACKGROUND', 'BACKGROUND', 'FOREGROUND');

const commands = {
  request: fc.tuple(requesters, fc.constantFrom<Kind>('MISSING', 'MISSING', 'REWRAP', 'REJECTED'), priorities).map(
    ([by, kind, priority]) =>
      new Command(`${by} requests (${kind}, ${priority})`, (model, subject) => {
        const wrong = model.envelopes.filter((one) => one.device === by && !one.rejected).at(-1)?.attempt ?? 99;
        const input = subject.real.requestInput(kind, priority, kind === 'REJECTED' ? wrong : 0);
        return requested(model, subject, by, input, kind, priority);
      }),
  ),
  sameRequestAgain: fc.nat(20).map(
    (n) =>
      new Command(`request ${n} comes again`, async (model, subject) => {
        if (subject.sent.requests.length === 0) return;
        const { by, input, kind, priority } = pick(subject.sent.requests, n);
        await requested(model, subject, by, input, kind, priority);
      }),
  ),
  requestMany: fc.tuple(requesters, fc.constantFrom<Kind>('MISSING', 'REWRAP'), priorities).map(
    ([by, kind, priority]) =>
      new Command(
        `${by} requests this one (${kind}, ${priority}) and one that nobody knows`,
        async (model, subject) => {
          const { real, sent } = subject;
          const known = real.wanted(kind, priority);
          const unknown = { ...known, sessionId: 'never-stored' };
          const input = { requestId: randomUUID(), keys: [unknown, known] };
          const again = () => real.as(by).requestKeys(input);
          const first = await again();
          sent.answered.push({ again, first });
          const [other, own] = first.results;
          // What one key is refused for is what a call for it alone would be refused for.
          const alone = await outcomeOf(real.as(by).requestKey({ requestId: randomUUID(), ...unknown }));
          expect(alone.reason).toBeDefined();
          expect(other?.refused?.reason).toBe(alone.reason);
          expect(own?.refused?.reason).toBe(whyNotRequested(model, by, kind));
          if (!own?.refused) await opened(model, real, { by, kind, priority }, own?.keyRequest);
        },
      ),
  ),
  reject: fc.tuple(requesters, fc.nat(20), priorities).map(
    ([by, n, priority]) =>
      new Command(`${by} rejects envelope ${n} (${priority})`, async (model, { real, sent }) => {
        const own = model.envelopes.filter((one) => one.device === by);
        // The newest most of the time: an older one was rejected before, as a rule.
        const envelope = n % 4 < 3 ? own.at(-1) : own[n % (own.length + 1)];
        const { conversationId, sessionId } = real.made.session;
        const input = {
          ...real.requestInput('REJECTED', priority, 0),
          conversationId,
          sessionId,
          attempt: envelope?.attempt ?? 99,
          reason: KeyRejectionReason.CANNOT_OPEN,
        };
        const again = () => real.as(by).rejectKey(input);
        const outcome = await outcomeOf(again());
        const superseded = envelope !== own.at(-1);
        const needless = !envelope || (envelope.rejected && superseded);
        const wanted = whyNot(model, by) ?? (needless ? 'KEY_REQUEST_NOT_NEEDED' : undefined);
        if (wanted !== undefined || outcome.reason !== undefined) return expect(outcome.reason).toBe(wanted);
        sent.answered.push({ again, first: outcome.answer });
        await opened(model, real, { by, kind: 'REJECTED', priority, rejected: envelope }, outcome.answer.keyRequest);
      }),
  ),
  attach: fc.tuple(fc.constantFrom(...names), fc.integer({ min: 0, max: 2 })).map(
    ([name, online]) =>
      new Command(`${name} ${online ? 'attaches' : 'goes away'}`, async (model, { real }) => {
        if (online) model.online.add(name);
        else model.online.delete(name);
        real.setOnline(name, online > 0);
      }),
  ),
  look: fc.constant(
    new Command('the sweep', async (model, { real }) => {
      const due = model.requests.filter((request) => isOpen(request) && request.due);
      const steps = due.map((request) => look(model, request));
      await real.look();
      for (const [n, request] of due.entries()) await follow(real, request, steps[n] as Look);
    }),
  ),
  lapse: fc.nat(20).map(
    (n) =>
      new Command(
        `offers of ${n} lapse`,
        async (model, { real }) => {
          const request = pickRequest(model, n);
          if (!isOpen(request)) return;
          await real.lapse(request.id);
          for (const offer of request.offers) offer.standing = false;
          request.due = true;
        },
        anyRequest,
      ),
  ),
  timeIsUp: fc.nat(20).map(
    (n) =>
      new Command(
        `the time of ${n} is up`,
        async (model, { real }) => {
          const request = pickRequest(model, n);
          if (!isOpen(request)) return;
          await real.timeIsUp(request.id);
          request.timeIsUp = true;
          request.due = true;
        },
        anyRequest,
      ),
  ),
  decline: fc.tuple(fc.nat(20), fc.nat(20), fc.constantFrom(...names)).map(
    ([n, m, other]) =>
      new Command(
        `offer ${m} of ${n} is declined`,
        async (model, { real }) => {
          const request = pickRequest(model, n);
          const offer = request.offers.length > 0 ? pick(request.offers, m) : undefined;
          const [holder, attempt] = offer ? [offer.holder, offer.attempt] : [other, Math.max(1, request.attempt)];
          const reason = DeclineReason.KEY_NOT_HELD;
          const outcome = await outcomeOf(real.as(holder).declineOffer({ keyRequestId: request.id, attempt, reason }));
          expect(outcome.reason).toBe(offer ? undefined : 'NOT_OFFERED');
          if (!offer) return;
          const before = offer.declined;
          offer.declined = true;
          if (!before && isOpen(request)) request.due = true;
        },
        anyRequest,
      ),
  ),
  fulfil: fc
    .tuple(
      fc.nat(20),
      fc.nat(20),
      fc.constantFrom(...names),
      fc.constantFrom<How>('right', 'right', 'right', 'forged', 'not offered'),
    )
    .map(
      ([n, m, other, how]) =>
        new Command(
          `${n} is fulfilled (${how}, offer ${m})`,
          async (model, { real, sent }) => {
            const request = pickRequest(model, n);
            const offered = how !== 'not offered' && request.offers.length > 0;
            const offer = offered ? pick(request.offers, m) : undefined;
            const [holder, attempt] = offer ? [offer.holder, offer.attempt] : [other, request.attempt + 1];
            const input = { requestId: randomUUID(), ...fulfilment(real, request, holder, attempt, how) };
            const again = () => real.as(holder).fulfillKeyRequest(input);
            const outcome = await outcomeOf(again());
            const wanted = whyNotFulfilled(model, request, holder, attempt, how);
            if (wanted !== undefined || outcome.reason !== undefined) return expect(outcome.reason).toBe(wanted);
            fulfilled(model, request, holder, attempt);
            real.answerAgrees(request, outcome.answer.keyRequest);
            sent.answered.push({ again, first: outcome.answer });
          },
          anyRequest,
        ),
    ),
  fulfilMany: fc.tuple(fc.constantFrom(...names), fc.nat(20)).map(
    ([holder, n]) =>
      new Command(
        `${holder} fulfils all that it was offered, and more`,
        async (model, { real, sent }) => {
          const sealed = model.requests.slice(-8).map((request, place) => {
            const attempt = request.offers.findLast((offer) => offer.holder === holder)?.attempt ?? request.attempt + 1;
            const how: How = (place + n) % 7 === 0 ? 'forged' : 'right';
            return { request, attempt, how, sent: fulfilment(real, request, holder, attempt, how) };
          });
          const input = { requestId: randomUUID(), fulfilments: sealed.map((each) => each.sent) };
          const again = () => real.as(holder).fulfillKeyRequests(input);
          const first = await again();
          sent.answered.push({ again, first });
          const wanted = sealed.map(({ request, attempt, how }) =>
            whyNotFulfilled(model, request, holder, attempt, how),
          );
          expect(first.results.map(({ refused }) => refused?.reason)).toEqual(wanted);
          for (const [place, { request, attempt }] of sealed.entries()) {
            if (wanted[place] !== undefined) continue;
            fulfilled(model, request, holder, attempt);
            real.answerAgrees(request, first.results[place]?.keyRequest);
          }
        },
        anyRequest,
      ),
  ),
  sameCallAgain: fc.nat(20).map(
    (n) =>
      new Command(`call ${n} comes again`, async (_model, { sent }) => {
        if (sent.answered.length === 0) return;
        const { again, first } = pick(sent.answered, n);
        expect(await outcomeOf(again())).toEqual({ answer: first });
      }),
  ),
  cancel: fc.tuple(fc.nat(20), fc.boolean()).map(
    ([n, byOperator]) =>
      new Command(
        `${n} is cancelled${byOperator ? ' by an operator' : ''}`,
        async (model, { real }) => {
          const request = pickRequest(model, n);
          const keyRequestId = request.id;
          const { keyRequest } = byOperator
            ? ((await real.world.operator.endKeyRequest({ keyRequestId })).keyRequest ?? {})
            : await real.as(request.requester).cancelKeyRequest({ keyRequestId });
          if (isOpen(request))
            endRequest(request, 'CANCELLED', byOperator ? 'cancelled_by_operator' : 'cancelled_by_requester');
          real.answerAgrees(request, keyRequest);
        },
        anyRequest,
      ),
  ),
  nudge: fc.nat(20).map(
    (n) =>
      new Command(
        `${n} is nudged`,
        async (model, { real }) => {
          const request = pickRequest(model, n);
          const outcome = await outcomeOf(real.world.operator.nudgeKeyRequest({ keyRequestId: request.id }));
          expect(outcome.reason).toBe(isOpen(request) ? undefined : 'KEY_REQUEST_ENDED');
          if (isOpen(request)) request.due = true;
        },
        anyRequest,
      ),
  ),
  replay: fc.nat(20).map(
    (n) =>
      new Command(
        `${n} is replayed`,
        async (model, { real }) => {
          const request = pick(model.requests, n);
          const outcome = await outcomeOf(real.world.operator.replayKeyRequest({ keyRequestId: request.id }));
          const wanted = isOpen(request) ? undefined : whyNotReplayed(model, request);
          if (wanted !== undefined || outcome.reason !== undefined) return expect(outcome.reason).toBe(wanted);
          const answer = outcome.answer.keyRequest?.keyRequest;
          let open = openRequestOf(model, request.requester);
          if (!open) {
            open = newRequest(model, answer?.keyRequestId ?? '', request.requester, request.kind, request.priority);
            open.due = true;
          }
          real.answerAgrees(open, answer);
        },
        anyRequest,
      ),
  ),
  member: fc.tuple(fc.constantFrom<User>('alice', 'bob'), fc.boolean()).map(
    ([user, member]) =>
      new Command(`${user} is ${member ? 'a member' : 'no member'}`, async (model, { real }) => {
        if (member) model.members.add(user);
        else model.members.delete(user);
        real.setMember(user, member);
      }),
  ),
  revoke: fc.constantFrom<Name>('late', 'bobsLate', 'bobs', 'tablet').map(
    (name) =>
      new Command(
        `${name} is revoked`,
        async (model, { real }) => {
          await real.revoke(name);
          model.revoked.add(name);
          for (const request of model.requests.filter(isOpen)) {
            const asked = request.offers.some((offer) => offer.holder === name && offer.standing && !offer.declined);
            if (request.requester === name || asked) request.due = true;
          }
        },
        (model) => !model.revoked.has(name),
      ),
  ),
};

function whyNotFulfilled(
  model: Model,
  request: ModelRequest,
  holder: Name,
  attempt: number,
  how: string,
): string | undefined {
  const offer = request.offers.find((one) => one.holder === holder && one.attempt === attempt);
  if (!offer || offer.declined) return 'NOT_OFFERED';
  for (const name of [request.requester, holder])
    if (!model.members.has(userOf(name)) || model.revoked.has(name)) return 'NOT_ENTITLED';
  if (how === 'forged') return 'SIGNATURE_INVALID';
  if (isOpen(request)) return undefined;
  return request.accepted === attempt ? 'ATTEMPT_ALREADY_FULFILLED' : 'KEY_REQUEST_ENDED';
}

function whyNotReplayed(model: Model, request: ModelRequest): string | undefined {
  if (whyNot(model, request.requester) !== undefined) return 'NOT_ENTITLED';
  const hasKey = request.kind === 'MISSING' && newestEnvelope(model, request.requester) !== undefined;
  return request.state === 'FULFILLED' || hasKey ? 'KEY_REQUEST_NOT_NEEDED' : undefined;
}

/** Rights that are lost for good come rarely: not much happens after them. */
const { request, attach, look: sweep, fulfil, decline, lapse, nudge, ...others } = commands;
const { requestMany, reject, fulfilMany, sameRequestAgain, sameCallAgain, ...rare } = others;
const often = Array.from({ length: 6 }, () => [request, sweep, fulfil, reject, decline, lapse]).flat();
const batches = Array.from({ length: 3 }, () => [requestMany, fulfilMany]).flat();
const sometimes = [
  ...batches,
  ...Array.from({ length: 3 }, () => [attach, nudge, sameRequestAgain, sameCallAgain]).flat(),
];
const anything = fc.commands([...often, ...sometimes, ...Object.values(rare)], { maxCommands: 100, size: 'max' });

it('whatever happens to key requests, the service and its rows do what the model of them says', async () => {
  let runs = 0;
  await fc.assert(
    fc.asyncProperty(fc.subarray([...names], { minLength: 2 }), anything, async (online, all) => {
      const real = await Real.begin(world, dispatching.dispatcher);
      const model = new Model();
      for (const name of online) {
        model.online.add(name);
        real.setOnline(name, true);
      }
      const subject: Subject = { real, sent: { requests: [], answered: [] } };
      const first = real.requestInput('MISSING', 'BACKGROUND', 0);
      await requested(model, subject, 'late', first, 'MISSING', 'BACKGROUND');
      await fc.asyncModelRun(() => ({ model, real: subject }), all);
      await endAll(model, real);
      runs++;
    }),
    // A slower machine does fewer runs. What failed is made smaller within the same time, and told with its seed.
    { numRuns: 40, interruptAfterTimeLimit: 20_000 },
  );
  expect(runs).toBeGreaterThan(0);
}, 120_000);

/** Time goes on until it is up for all that is open: each request then says that it ended, and why. */
async function endAll(model: Model, real: Real): Promise<void> {
  for (const open of model.requests.filter(isOpen)) {
    await real.timeIsUp(open.id);
    endRequest(open, 'EXPIRED', 'expired');
  }
  await real.look();
  await real.agreesWith(model);
}
