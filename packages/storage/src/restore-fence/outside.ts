/** What is known of a database outside of it. */
export interface OutsideRecord {
  readonly incarnation: string;
  readonly place: string;
  /** The database had reached this position, and committed it. */
  readonly confirmed: bigint;
  /** The database may have gone on up to here. */
  readonly reserved: bigint;
  /** The incarnation that followed; a database that still has this one went back. */
  readonly endedBy?: string;
}

/** A record with the revision that a write must follow. Revision 0: there is none yet. */
export interface OutsideState {
  readonly record: OutsideRecord | undefined;
  readonly revision: number;
}

/** Another replica wrote meanwhile. */
export class OutsideMovedOn extends Error {
  constructor() {
    super('the record outside the database was written meanwhile');
    this.name = 'OutsideMovedOn';
  }
}

/** Keeps one record for each incarnation of a database, where a restore of the database does not reach. */
export interface OutsideStore {
  /** Throws when it cannot be asked. */
  read(incarnation: string): Promise<OutsideState>;
  /** Returns the new revision. Throws OutsideMovedOn when `revision` is not the newest, and when it cannot be asked. */
  write(record: OutsideRecord, revision: number): Promise<number>;
}
