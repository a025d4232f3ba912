import { type Rpc, refuse } from '@keytrail/rpc';
import type { Standings } from '../standings.ts';
import { isOfErasedUser } from '../store/erasures.ts';

/** The method, refused with USER_ERASED to devices of users who were erased, as late as standings are remembered. */
export function forLivingUsers(standings: Standings, rpc: Rpc): Rpc {
  if (rpc.kind !== 'unary') throw new Error('this service has no streams');
  const { handle } = rpc;
  return {
    ...rpc,
    async handle(request, call) {
      const { caller } = call;
      if (caller.kind !== 'device') return handle(request, call);
      if ((await standings.of(caller)).erased) throw userErased(caller.userId);
      try {
        return await handle(request, call);
      } catch (error) {
        // Erased since: the database lets no erased user be named.
        throw isOfErasedUser(error) ? userErased(caller.userId) : error;
      }
    },
  };
}

function userErased(userId: string) {
  return refuse('USER_ERASED', 'the user has been erased', { metadata: { user_id: userId } });
}
