import { type CheckCode, storeOf } from '@keytrail/diagnosis';
import type { Finding, Place } from './finding.ts';

/** What the way of a key stands on. */
const wayStandsOn: readonly CheckCode[] = ['SERVICES_REACHABLE', 'DATABASE', 'NATS', 'REDIS'];

/** The service that a place is of; a database is its service's. */
function serviceOf({ where }: Place): string {
  return where.replace(/^database of /, '').split(' at ')[0] ?? '';
}

/**
 * Has places that could not be asked follow from the store that they ask, where its check failed in the same run: at the same service, or at
 * any for what is asked of the fleet.
 */
export function followingStores(code: CheckCode, places: readonly Place[], before: readonly Finding[]): Place[] {
  const store = storeOf(code);
  const failed = before.find((finding) => finding.code === store && finding.status === 'fail');
  if (!store || !failed) return [...places];
  const services = new Set(failed.places.filter(({ status }) => status === 'fail').map(serviceOf));
  return places.map((place) =>
    place.status === 'unknown' && place.follows === undefined && services.has(serviceOf(place))
      ? { ...place, follows: store, hint: place.hint || `see ${store}` }
      : place,
  );
}

/** Why the way of a key is not walked: it would end where a check has failed, and leave users that nobody can erase yet. */
export function wayBarred(before: readonly Finding[]): Place | undefined {
  const failed = wayStandsOn.find((code) =>
    before.some((finding) => finding.code === code && finding.status === 'fail'),
  );
  return (
    failed && {
      where: 'doctor',
      status: 'unknown',
      follows: failed,
      summary: `it was not tried, because ${failed} fails`,
      hint: `see ${failed}; --only REPRODUCTION tries it all the same`,
    }
  );
}
