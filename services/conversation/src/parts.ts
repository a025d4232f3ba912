import type { SessionService } from '@keytrail/contracts';
import type { Peer } from '@keytrail/rpc';
import type { Database } from '@keytrail/storage';
import type { AtFaultPoint } from './fault-points.ts';
import type { DeviceDirectory } from './peers/device-directory.ts';
import type { PrismaClient } from './store/generated/client.ts';
import type { SessionBounds } from './store/messages.ts';

/** What the methods and jobs of this service work with. */
export interface Parts {
  readonly db: Database;
  /** For the cold reads; the same pool as `db`. */
  readonly prisma: PrismaClient;
  readonly devices: DeviceDirectory;
  readonly sessions: Pick<Peer<typeof SessionService>, 'storeSession' | 'discardSession'>;
  readonly sessionBounds: SessionBounds;
  /** Goes onto every row. */
  readonly writerBuild: string;
  readonly atFaultPoint: AtFaultPoint;
}
