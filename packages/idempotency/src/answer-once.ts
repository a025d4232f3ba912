import { type DescMessage, type DescMethodUnary, fromBinary, type MessageShape, toBinary } from '@bufbuild/protobuf';
import { methodName } from '@keytrail/rpc';
import {
  type Database,
  onceByRequestId,
  type RequestIdentity,
  RequestIdReused,
  type Transaction,
} from '@keytrail/storage';
import { requestIdReused } from './request-id-reused.ts';

/** A request that is answered once: who asked what, by which id, and the shape of its answer. */
export interface AskedRequest<O extends DescMessage> {
  readonly identity: RequestIdentity;
  readonly output: O;
}

export interface Answer<O extends DescMessage> {
  readonly response: MessageShape<O>;
  /** The request had been answered before: `response` is that answer. */
  readonly repeated: boolean;
}

/** The request as it came. `caller` is a stable text: request ids of different callers never meet. */
export function askedRequest<I extends DescMessage, O extends DescMessage>(
  method: DescMethodUnary<I, O>,
  request: MessageShape<I> & { readonly requestId: string },
  caller: string,
): AskedRequest<O> {
  const { requestId } = request;
  const content = toBinary(method.input, request);
  return { identity: { caller, method: methodName(method), requestId, content }, output: method.output };
}

/** Does the work and remembers the answer in one transaction, or repeats the first answer. Throws REQUEST_ID_REUSED. */
export async function answerOnce<O extends DescMessage>(
  db: Database,
  { identity, output }: AskedRequest<O>,
  work: (tx: Transaction) => Promise<MessageShape<O>>,
): Promise<Answer<O>> {
  try {
    const { response, repeated } = await db.transaction((tx) =>
      onceByRequestId(tx, identity, async () => toBinary(output, await work(tx))),
    );
    return { response: fromBinary(output, response), repeated };
  } catch (error) {
    throw error instanceof RequestIdReused ? requestIdReused(identity.requestId) : error;
  }
}

/**
 * The answer that was given to this request before, if any: it stands, also when the request would be refused now. Takes a transaction.
 * Throws REQUEST_ID_REUSED.
 */
export async function earlierAnswer<O extends DescMessage>(
  db: Database,
  asked: AskedRequest<O>,
): Promise<MessageShape<O> | undefined> {
  try {
    const { response } = await answerOnce(db, asked, () => {
      throw new NotAskedBefore();
    });
    return response;
  } catch (error) {
    if (error instanceof NotAskedBefore) return undefined;
    throw error;
  }
}

/**
 * Does the work. When it is refused only because another try of the same request was answered meanwhile and changed what the work begins with,
 * the answer is that one.
 */
export async function orAnswerMeanwhile<O extends DescMessage>(
  db: Database,
  asked: AskedRequest<O>,
  work: () => Promise<MessageShape<O>>,
): Promise<MessageShape<O>> {
  try {
    return await work();
  } catch (refusal) {
    const meanwhile = await earlierAnswer(db, asked).catch(() => undefined);
    if (meanwhile) return meanwhile;
    throw refusal;
  }
}

class NotAskedBefore extends Error {}
