import type { Database } from '@keytrail/storage';
import type { Logger } from '@keytrail/telemetry';
import type { SessionConfig } from './config.ts';
import type { OperatorPeers } from './operator-peers.ts';
import type { Peers } from './peers.ts';
import type { PrismaClient } from './store/generated/client.ts';

/** What the methods, consumers and jobs of this service work with. */
export interface Parts {
  readonly db: Database;
  /** For the cold reads; the same pool as `db`. */
  readonly prisma: PrismaClient;
  readonly peers: Peers;
  readonly operatorPeers: OperatorPeers;
  readonly config: SessionConfig;
  readonly log: Logger;
  /** Goes onto every row. */
  readonly writerBuild: string;
  /** The newest migration that this build knows; goes onto sessions. */
  readonly writerSchema: string;
}
