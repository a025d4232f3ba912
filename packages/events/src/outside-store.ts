import { OutsideMovedOn, type OutsideRecord, type OutsideState, type OutsideStore } from '@keytrail/storage';
import { JetStreamApiCodes, JetStreamApiError, jetstreamManager } from '@nats-io/jetstream';
import type { EventBus } from './bus.ts';

const stream = 'FENCE';
const subjectOf = (incarnation: string) => `keytrail.fence.v1.${incarnation}`;
const timeoutMs = 2_000;
/** What JetStream calls a subject whose newest message is another than the expected one. */
const wrongLastSequence: number = JetStreamApiCodes.StreamWrongLastSequence;
const noMessageFound = 10_037;

/**
 * Keeps what is known of databases in a stream of its own that has the newest record of each incarnation, on disk whatever the setting of the
 * other streams, without an end. A stream that is lost is begun anew.
 */
export function createOutsideStore(bus: EventBus, { replicas }: { readonly replicas: number }): OutsideStore {
  const manager = jetstreamManager(bus.connection, { checkAPI: false, timeout: timeoutMs });

  async function begin(): Promise<void> {
    await (await manager).streams.add({
      name: stream,
      description: 'How far each database is known to have come; see docs/decisions/0037-restored-databases.md',
      subjects: [subjectOf('*')],
      storage: 'file',
      num_replicas: replicas,
      max_msgs_per_subject: 1,
    });
  }

  function present(): void {
    if (!bus.isConnected()) throw new Error('NATS is away');
  }

  async function publish(record: OutsideRecord, revision: number): Promise<number> {
    const { seq } = await bus.jetstream.publish(subjectOf(record.incarnation), write(record), {
      expect: { lastSubjectSequence: revision },
      timeout: timeoutMs,
      retries: 0,
    });
    return seq;
  }

  return {
    async read(incarnation): Promise<OutsideState> {
      present();
      try {
        const message = await (await manager).streams.getMessage(stream, { last_by_subj: subjectOf(incarnation) });
        return message ? { record: read(message.string()), revision: message.seq } : { record: undefined, revision: 0 };
      } catch (error) {
        if (isApiError(error, JetStreamApiCodes.StreamNotFound)) {
          await begin();
          return { record: undefined, revision: 0 };
        }
        if (isApiError(error, noMessageFound)) return { record: undefined, revision: 0 };
        throw error;
      }
    },
    async write(record, revision) {
      present();
      try {
        return await publish(record, revision);
      } catch (error) {
        if (isApiError(error, wrongLastSequence)) throw new OutsideMovedOn();
        throw error;
      }
    },
  };
}

function isApiError(error: unknown, code: number): boolean {
  return error instanceof JetStreamApiError && error.code === code;
}

function write({ confirmed, reserved, ...rest }: OutsideRecord): string {
  return JSON.stringify({ ...rest, confirmed: String(confirmed), reserved: String(reserved) });
}

function read(text: string): OutsideRecord {
  const { confirmed, reserved, ...rest } = JSON.parse(text);
  return { ...rest, confirmed: BigInt(confirmed), reserved: BigInt(reserved) };
}
