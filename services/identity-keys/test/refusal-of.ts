import { type Refusal, readRefusal } from '@keytrail/rpc';

/** What the refusal of a call says; throws when the call is answered. */
export async function refusalOf(call: Promise<unknown>): Promise<Refusal> {
  const answered = Symbol('answered');
  const error = await call.then(
    () => answered,
    (refused: unknown) => refused,
  );
  if (error === answered) throw new Error('the call was answered');
  return readRefusal(error);
}
