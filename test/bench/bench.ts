import type { Constellation } from '@keytrail/local/constellation';

/** What every row measures on. */
export interface Bench {
  readonly constellation: Constellation;
  /** Of each service and of the bare programs alike. */
  readonly databaseConnections: number;
  /** Key requests per second. */
  readonly perSecond: number;
  /** For logs and what the load programs read. */
  readonly folder: string;
  readonly progress: (line: string) => void;
}
