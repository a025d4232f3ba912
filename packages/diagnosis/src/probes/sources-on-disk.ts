import { type BuildIdentity, sourcesOnDisk } from '@keytrail/telemetry';
import type { Outcome, Probe } from '../check.ts';

/** Whether the sources are those that were loaded: otherwise a restart would run other code than what runs. */
export function probeSourcesOnDisk(build: BuildIdentity): Probe {
  return { code: 'SOURCES_ON_DISK', run: async () => judgeSourcesOnDisk(build, sourcesOnDisk(build.service)) };
}

export function judgeSourcesOnDisk(build: BuildIdentity, onDisk: string): Outcome {
  const evidence = { loaded: build.sourcesDigest, onDisk, startedAt: build.startedAt };
  if (onDisk === build.sourcesDigest) return { status: 'ok', summary: 'what runs is what lies on disk', evidence };
  return {
    status: 'warn',
    summary: 'the sources on disk have changed since they were loaded: what runs is not what lies there',
    evidence,
    hint: `if what lies there is what should run, restart it: ${build.restartAdvice}`,
  };
}
