import { checksFindFault } from './check-judgements.ts';
import { claimFaults } from './claim-faults.ts';
import { delivery } from './delivery.ts';
import { deviceLogs } from './device-logs.ts';
import { devicesAndClaims } from './devices-and-claims.ts';
import { doctorTellsTheTruth } from './doctor.ts';
import { doctorAsksTheFleet } from './doctor-fleet.ts';
import { drainDefence } from './drain-defence.ts';
import { epochs } from './epochs.ts';
import { erasure } from './erasure.ts';
import { explanations } from './explanations.ts';
import { fleets } from './fleets.ts';
import type { Guard } from './guard.ts';
import { identitiesSdk } from './identities-sdk.ts';
import { keptTelemetry } from './kept-telemetry.ts';
import { keyRequests } from './key-requests.ts';
import { keyStores } from './key-stores.ts';
import { manyRequests } from './many-requests.ts';
import { seenByOperators } from './metrics.ts';
import { explainedMisses } from './misses.ts';
import { operatorViews } from './operator-views.ts';
import { operatorsAndChanges } from './operators-and-changes.ts';
import { prekeyLife } from './prekey-life.ts';
import { prekeyUpkeep } from './prekey-upkeep.ts';
import { presence } from './presence.ts';
import { presenceHeals } from './presence-heals.ts';
import { restores } from './restores.ts';
import { revocation } from './revocation.ts';
import { rosters } from './rosters.ts';
import { rotationsAndChanges } from './rotations.ts';
import { sdkRecovery } from './sdk-recovery.ts';
import { keptMisses } from './telemetry.ts';
import { toldExplanations } from './told-explanations.ts';
import { toldTraces } from './told-traces.ts';
import { followedMisses } from './traces.ts';
import { trust } from './trust.ts';
import { uploadVerification } from './uploads.ts';
import { viewsExitCodes } from './views-exit-codes.ts';
import { wholeSessions } from './whole-sessions.ts';

/** All guards, in the order of the invariants. */
export const guards: readonly Guard[] = [
  ...wholeSessions,
  ...fleets,
  ...devicesAndClaims,
  ...deviceLogs,
  ...prekeyLife,
  ...claimFaults,
  ...restores,
  ...drainDefence,
  ...uploadVerification,
  ...prekeyUpkeep,
  ...epochs,
  ...rotationsAndChanges,
  ...keyRequests,
  ...manyRequests,
  ...keyStores,
  ...delivery,
  ...operatorsAndChanges,
  ...presence,
  ...presenceHeals,
  ...trust,
  ...rosters,
  ...identitiesSdk,
  ...revocation,
  ...sdkRecovery,
  ...erasure,
  ...seenByOperators,
  ...explainedMisses,
  ...keptMisses,
  ...followedMisses,
  ...doctorTellsTheTruth,
  ...explanations,
  ...operatorViews,
  ...keptTelemetry,
  ...toldTraces,
  ...toldExplanations,
  ...doctorAsksTheFleet,
  ...checksFindFault,
  ...viewsExitCodes,
];
