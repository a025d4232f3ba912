import { type ServiceName, targetVariable, tokenSources } from '../../connection.ts';
import type { Place } from '../finding.ts';
import { type Asked, placeOf, type Unnamed } from '../processes.ts';

const hint =
  'is the process there, and is the target its gRPC port? Its supervisor and its log tell, and `ps -o stat=,lstart= -p <pid>`: nothing when it is gone, T when it stands still';

const unnamedHint = 'is the name right, and does it have an address as seen from here?';

const tokenHint =
  'it answers, but does not take the token that others take: has it the same KEYTRAIL_TOKEN_ISSUER and KEYTRAIL_JWKS_URL, and is its clock right?';

const uselessTokenHint = `no process takes the token, so only databases are looked at: give an operator's in ${tokenSources}`;

/** SERVICES_REACHABLE: a place for each process, and for each service that none could be named of. `advice`: what operators do here about one that is not there. */
export function judgeReachable(
  asked: readonly Asked[],
  unnamed: readonly Unnamed[],
  withoutTarget: readonly ServiceName[],
  advice = '',
): Place[] {
  const silentHint = advice ? `${hint}; here: ${advice}` : hint;
  const taken = asked.some(({ described }) => described);
  return [
    ...asked.map((process): Place => {
      const where = placeOf(process);
      const { described, problem, tokenRefused, mistaken } = process;
      if (!described)
        return {
          where,
          status: 'fail',
          summary: problem ?? 'it does not answer',
          hint: mistaken
            ? `the target names another service: mend --${process.service}, or ${targetVariable(process.service)}`
            : tokenRefused
              ? taken
                ? tokenHint
                : uselessTokenHint
              : silentHint,
        };
      if (!described.ready)
        return {
          where,
          status: 'fail',
          summary: `it is not ready: ${described.notReadyBecause}`,
          hint: 'it gets no traffic until that is mended',
        };
      if (described.notReadyBecause)
        return { where, status: 'warn', summary: `it is ready, and warns: ${described.notReadyBecause}`, hint: '' };
      return { where, status: 'ok', summary: 'it answers, and is ready' };
    }),
    ...unnamed.map(
      ({ service, problem }): Place => ({ where: service, status: 'fail', summary: problem, hint: unnamedHint }),
    ),
    ...withoutTarget.map(
      (service): Place => ({
        where: service,
        status: 'unknown',
        summary: 'no target was given',
        hint: `give --${service} <host:port>, or its environment variable`,
      }),
    ),
  ];
}
