import { randomUUID } from 'node:crypto';
import { setTimeout as pause } from 'node:timers/promises';
import { createClient, KeyMissError, type KeytrailClient, RefusalError } from '@keytrail/client';
import { createNodeTransports, nodePrimitives } from '@keytrail/client/node';
import { IdentityKeysService } from '@keytrail/contracts';
import { serviceNames, targetOf } from '../connection.ts';
import { describeFailure } from '../failure.ts';
import type { Session } from '../terminal.ts';
import type { Place } from './finding.ts';
import { tokenCommand } from './token-command.ts';

const where = 'doctor';
/** For the whole way of a key, and for the erasures after it. */
const longestMs = 30_000;

interface Step {
  readonly name: string;
  readonly ms: number;
}

/** What two throw-away users saw. */
interface Way {
  readonly steps: Step[];
  at: string;
  missTraceId: string;
  /** What stays when both users are erased. */
  made: { readonly conversationId: string; readonly sessionId: string } | undefined;
  readonly users: readonly string[];
}

/**
 * REPRODUCTION: two users, a conversation, a device that comes later, misses its key, asks for it and gets it. Then both users are erased, and
 * what could not be is named. Skipped without KEYTRAIL_TOKEN_COMMAND.
 */
export async function reproduce(session: Session): Promise<Place> {
  const { environment, options } = session;
  const command = environment.KEYTRAIL_TOKEN_COMMAND?.trim();
  if (!command)
    return {
      where,
      status: 'skip',
      summary: 'it needs tokens of throw-away devices',
      hint: 'set KEYTRAIL_TOKEN_COMMAND to a command that prints a token, given a user and a device as arguments',
    };
  const [identityKeys, sessionTarget, conversation, presence] = serviceNames.map((service) =>
    targetOf(service, options, environment),
  );
  // The order of serviceNames.
  if (!identityKeys || !sessionTarget || !conversation || !presence)
    return {
      where,
      status: 'unknown',
      summary: 'it needs the targets of all four services',
      hint: 'give those that are missing; see SERVICES_REACHABLE',
    };
  const targets = { identityKeys, session: sessionTarget, conversation, presence };
  const mark = randomUUID().slice(0, 8);
  const way: Way = {
    steps: [],
    at: '',
    missTraceId: '',
    made: undefined,
    users: [`doctor.${mark}.a`, `doctor.${mark}.b`],
  };
  const token = tokenCommand(command);
  try {
    await Promise.all(devicesOf(way.users).map(({ user, name }) => token(user, name)));
  } catch (error) {
    return {
      where,
      status: 'unknown',
      summary: (error as Error).message,
      hint: 'KEYTRAIL_TOKEN_COMMAND: run what it says with a user and a device as arguments; it has to print one token, and nothing else',
    };
  }
  const clients: KeytrailClient[] = [];
  const closing: (() => void)[] = [];
  const device = (user: string, name: string) => {
    const transports = createNodeTransports({
      targets,
      token: () => token(user, name),
      timeoutMs: Math.min(options.timeout, longestMs),
    });
    closing.push(() => transports.close());
    const client = createClient({
      user,
      device: name,
      transports,
      primitives: nodePrimitives,
      recoverHistory: false,
      autoRotate: false,
      upkeep: false,
    });
    clients.push(client);
    return client;
  };
  let failure: unknown;
  const late = AbortSignal.timeout(longestMs);
  const tooLate = new Promise<never>((_, reject) =>
    late.addEventListener('abort', () => reject(new Error(`no end within ${longestMs / 1000} s`)), { once: true }),
  );
  const walking = walk(way, device);
  try {
    await Promise.race([walking, tooLate]);
  } catch (error) {
    failure = error;
  }
  walking.catch(() => {});
  await Promise.race([
    Promise.allSettled(clients.map((client) => client.close())),
    pause(2_000, undefined, { ref: false }),
  ]);
  for (const close of closing) close();
  const left = await cleanUp(session, way.users);
  return tell(way, failure, left);
}

/** Of the one user, and two of the other. */
function devicesOf([a = '', b = '']: readonly string[]) {
  return [
    { user: a, name: 'phone' },
    { user: b, name: 'phone' },
    { user: b, name: 'tablet' },
  ] as const;
}

async function walk(way: Way, device: (user: string, name: string) => KeytrailClient): Promise<void> {
  const step = async <T>(name: string, work: () => Promise<T>): Promise<T> => {
    way.at = name;
    const from = performance.now();
    const result = await work();
    way.steps.push({ name, ms: performance.now() - from });
    return result;
  };
  const [, b = ''] = way.users;
  const [alice, bob, tablet] = devicesOf(way.users).map(({ user, name }) => device(user, name)) as [
    KeytrailClient,
    KeytrailClient,
    KeytrailClient,
  ];
  await step('register', () => Promise.all([alice.register(), bob.register()]));
  await step('attach', () => Promise.all([alice.attach(), bob.attach()]));
  const { conversationId, sessionId } = await step('create', () =>
    alice.createConversation({ kind: 'direct', members: [b] }),
  );
  way.made = { conversationId, sessionId };
  await step('read', () => bob.openSession(conversationId, sessionId, { recover: false }));
  await step('add a device', async () => {
    const link = await tablet.createLinkRequest();
    await tablet.registerApproved(await bob.approveDevice(link, await tablet.linkCode(link)));
    await tablet.attach();
  });
  await step('miss', async () => {
    try {
      await tablet.openSession(conversationId, sessionId, { recover: false });
    } catch (error) {
      if (!(error instanceof KeyMissError) || error.cause !== 'DEVICE_ADDED_AFTER_SESSION') throw error;
      way.missTraceId = error.traceId ?? '';
      return;
    }
    throw new Error('a device that came later had the key at once');
  });
  await step('ask and get', () => tablet.openSession(conversationId, sessionId, { timeoutMs: 20_000 }));
}

/** A user whose erasure is not over, or could not even be asked for. */
interface Left {
  readonly asked: boolean;
  readonly text: string;
}

/** Erases the users; returns those of whom not everything is. */
async function cleanUp({ connections, options }: Session, users: readonly string[]): Promise<Left[]> {
  const identityKeys = connections.client(IdentityKeysService, 'identity-keys');
  const until = Date.now() + Math.min(longestMs, Math.max(options.timeout, 5_000) * 2);
  const left = await Promise.all(
    users.map(async (userId): Promise<Left[]> => {
      let erasureId: string | undefined;
      try {
        const auditNote = 'a throw-away user of keytrail doctor';
        const asked = await identityKeys.deleteUser({ requestId: randomUUID(), userId, auditNote });
        let erasure = asked.erasure;
        erasureId = erasure?.erasureId;
        while (erasure && !erasure.services.every(({ erasedAt }) => erasedAt) && Date.now() < until) {
          await pause(100);
          ({ erasure } = await identityKeys.getErasure({ erasureId: erasure.erasureId }));
        }
        const waiting = (erasure?.services ?? []).filter(({ erasedAt }) => !erasedAt).map(({ service }) => service);
        const text = `${userId} in ${waiting.join(', ')} (erasure ${erasureId})`;
        return waiting.length > 0 ? [{ asked: true, text }] : [];
      } catch (error) {
        const why = describeFailure(error).text.split('\n')[0];
        return [
          { asked: erasureId !== undefined, text: `${userId} (${erasureId ? `erasure ${erasureId}: ` : ''}${why})` },
        ];
      }
    }),
  );
  return left.flat();
}

function toldBy(failure: unknown): { readonly answered: boolean; readonly text: string } {
  if (failure instanceof KeyMissError) return { answered: true, text: failure.message };
  if (failure instanceof RefusalError)
    return { answered: !['', 'DEADLINE_EXCEEDED'].includes(failure.reason), text: failure.message };
  const { answered, text } = describeFailure(failure);
  return { answered, text: text.split('\n')[0] ?? '' };
}

function tell({ steps, at, missTraceId, made, users }: Way, failure: unknown, left: readonly Left[]): Place {
  const evidence = {
    ...Object.fromEntries(steps.map(({ name, ms }) => [name, `${Math.round(ms)} ms`])),
    ...(missTraceId && { missTraceId }),
    users: users.join(' '),
    ...made,
    ...(left.length > 0 && { notErased: left.map(({ text }) => text).join('; ') }),
  };
  const durationMs = steps.reduce((sum, { ms }) => sum + ms, 0);
  if (failure !== undefined) {
    const { answered, text } = toldBy(failure);
    // Of a call that nobody answered, nobody has a trace.
    const traceId = answered ? (failure as { traceId?: string }).traceId : undefined;
    return {
      where,
      status: 'fail',
      summary: `it ended at “${at}”: ${text}`,
      evidence: { ...evidence, ...(traceId && { traceId }) },
      hint: traceId
        ? `keytrail trace ${traceId} shows where`
        : answered
          ? 'the step and the reason tell where; see the checks above'
          : 'nobody answered: see SERVICES_REACHABLE',
      durationMs,
    };
  }
  if (left.length > 0)
    return {
      where,
      status: 'warn',
      summary: 'a key got from one device to another, but not all throw-away users are erased',
      evidence,
      hint: left.every(({ asked }) => asked)
        ? 'the erasures go on by themselves: see DEAD_LETTERS and CONSUMERS of the services that are named'
        : 'nobody erases those that are named before DeleteUser is called for them',
      durationMs,
    };
  return {
    where,
    status: 'ok',
    summary: `a key got from one device to another in ${Math.round(durationMs)} ms, and both users are erased`,
    evidence,
    durationMs,
  };
}
