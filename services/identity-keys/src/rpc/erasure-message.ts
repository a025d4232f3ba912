import { create } from '@bufbuild/protobuf';
import { timestampFromDate } from '@bufbuild/protobuf/wkt';
import { type Erasure as ErasureMessage, ErasureSchema, ErasureState } from '@keytrail/contracts';
import type { Queryable } from '@keytrail/storage';
import { type Erasure, readServiceReports } from '../store/erasures.ts';

const services = ['conversation', 'identity-keys', 'presence', 'session'] as const;

/** An erasure with what each service did, or has not done yet. */
export async function erasureMessage(db: Queryable, erasure: Erasure): Promise<ErasureMessage> {
  const { erasureId, userId = '', requestedAt, completedAt } = erasure;
  const reports = await readServiceReports(db, erasureId);
  return create(ErasureSchema, {
    erasureId,
    userId,
    state: completedAt ? ErasureState.COMPLETED : ErasureState.RUNNING,
    requestedAt: timestampFromDate(requestedAt),
    ...(completedAt && { completedAt: timestampFromDate(completedAt) }),
    services: services.map((service) => {
      const report = reports.find((of) => of.service === service);
      if (!report) return { service };
      return {
        service,
        erasedAt: timestampFromDate(report.erasedAt),
        counts: report.counts.map((count) => ({ ...count })),
      };
    }),
  });
}
