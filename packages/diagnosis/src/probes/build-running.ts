import type { BuildIdentity } from '@keytrail/telemetry';
import type { Outcome, Probe } from '../check.ts';

/** Which build this process runs, since when, and what would start it again. */
export function probeBuildRunning(build: BuildIdentity): Probe {
  return { code: 'BUILD_RUNNING', run: async () => judgeBuildRunning(build) };
}

export function judgeBuildRunning(build: BuildIdentity): Outcome {
  const { writerBuild, revision, startedAt, pid, host, supervisor, restartAdvice, image, nodeVersion } = build;
  const evidence = {
    build: writerBuild,
    revision,
    startedAt,
    pid,
    host,
    supervisor,
    nodeVersion,
    restartAdvice,
    ...(image !== '' && { image }),
  };
  const by = supervisor === 'launcher' ? 'started by make up, which watches nothing' : `supervised by ${supervisor}`;
  const summary = `${writerBuild} since ${startedAt}, process ${pid} on ${host}, ${by}`;
  if (supervisor !== 'none') return { status: 'ok', summary, evidence };
  return { status: 'warn', summary, evidence, hint: restartAdvice };
}
