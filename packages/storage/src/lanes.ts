import type { Writable } from 'node:stream';
import pg from 'pg';

/** A few connections that many statements share, several on their way on each at once. */
export interface Lanes {
  /** Runs `work` on the connection with the fewest statements on their way, connecting it first if need be. */
  use<T>(work: (client: pg.Client) => Promise<T>): Promise<T>;
  close(): Promise<void>;
}

interface Lane {
  client: Promise<pg.Client> | undefined;
  onTheWay: number;
}

/** What one turn of the event loop asks of a connection leaves with one system call. */
function sendTogether(client: pg.Client): void {
  const { stream } = (client as unknown as { readonly connection: { readonly stream: Writable } }).connection;
  if (stream.writableCorked > 0) return;
  stream.cork();
  setImmediate(() => stream.uncork());
}

/** Connects on first use. A connection that breaks fails what is on its way on it, and is replaced. */
export function openLanes(config: pg.ClientConfig, count: number): Lanes {
  const lanes: Lane[] = Array.from({ length: count }, () => ({ client: undefined, onTheWay: 0 }));
  let closed = false;

  function connected(lane: Lane): Promise<pg.Client> {
    if (closed) throw new Error('the database was closed');
    lane.client ??= connect(lane);
    return lane.client;
  }

  function connect(lane: Lane): Promise<pg.Client> {
    const client = new pg.Client({ ...config, pipeline: true });
    const connecting = client.connect().then(() => client);
    const forget = () => {
      if (lane.client === connecting) lane.client = undefined;
    };
    client.on('error', forget);
    client.on('end', forget);
    connecting.catch(forget);
    return connecting;
  }

  return {
    async use(work) {
      const lane = lanes.reduce((a, b) => (b.onTheWay < a.onTheWay ? b : a));
      lane.onTheWay += 1;
      try {
        const client = await connected(lane);
        sendTogether(client);
        return await work(client);
      } finally {
        lane.onTheWay -= 1;
      }
    },
    async close() {
      closed = true;
      const ending = lanes.map(({ client }) => client?.then((each) => each.end()));
      await Promise.allSettled(ending);
    },
  };
}
