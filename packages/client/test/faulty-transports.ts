import { Code, ConnectError, type Transport } from '@connectrpc/connect';
import type { Transports } from '../src/index.ts';

/** Transports whose servers can be away. */
export interface FaultyTransports extends Transports {
  away: boolean;
}

export function faulty(transports: Transports): FaultyTransports {
  const state = { away: false };
  const wrap = (transport: Transport): Transport => {
    const check = () => {
      if (state.away) throw new ConnectError('connect ECONNREFUSED', Code.Unavailable);
    };
    return {
      async unary(...args) {
        check();
        return transport.unary(...args);
      },
      async stream(...args) {
        check();
        return transport.stream(...args);
      },
    };
  };
  return {
    identityKeys: wrap(transports.identityKeys),
    conversation: wrap(transports.conversation),
    session: wrap(transports.session),
    presence: wrap(transports.presence),
    get away() {
      return state.away;
    },
    set away(away) {
      state.away = away;
    },
  };
}
